//! Writing the tag in front of a variant.

use serde::{
    Serialize, Serializer,
    ser::{Error as _, Impossible, SerializeMap as _, SerializeStruct, SerializeStructVariant},
};

/// Writes the tag in front of the variant's fields.
pub(crate) struct Writer<S> {
    tag: &'static str,
    /// Known once the variant is: what follows are its fields.
    variant: Option<&'static str>,
    inner: S,
}

impl<S: Serializer> Writer<S> {
    pub(crate) fn new(tag: &'static str, inner: S) -> Self {
        Self { tag, variant: None, inner }
    }

    fn begin(self, name: &'static str, fields: usize) -> Result<S::SerializeStruct, S::Error> {
        let variant = self.variant.ok_or_else(|| no_place::<S>(name))?;
        let mut writing = self.inner.serialize_struct(name, fields + 1)?;
        writing.serialize_field(self.tag, variant)?;
        Ok(writing)
    }
}

fn no_place<S: Serializer>(what: &str) -> S::Error {
    S::Error::custom(format_args!("{what} has no place for a tag"))
}

macro_rules! no_place {
    ($($method:ident($($type:ty),*) -> $ok:ty;)+) => {$(
        fn $method(self, $(_: $type),*) -> Result<$ok, S::Error> {
            Err(no_place::<S>(stringify!($method)))
        }
    )+};
}

impl<S: Serializer> Serializer for Writer<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Impossible<S::Ok, S::Error>;
    type SerializeTuple = Impossible<S::Ok, S::Error>;
    type SerializeTupleStruct = Impossible<S::Ok, S::Error>;
    type SerializeTupleVariant = Impossible<S::Ok, S::Error>;
    type SerializeMap = S::SerializeMap;
    type SerializeStruct = S::SerializeStruct;
    type SerializeStructVariant = WritingFields<S::SerializeStruct>;

    fn serialize_unit_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        Self { variant: Some(variant), ..self }.begin(name, 0)?.end()
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        value.serialize(Self { variant: Some(variant), ..self })
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        fields: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        Self { variant: Some(variant), ..self }.begin(name, fields).map(WritingFields)
    }

    fn serialize_struct(self, name: &'static str, fields: usize) -> Result<S::SerializeStruct, S::Error> {
        self.begin(name, fields)
    }

    /// A variant with a flattened field.
    fn serialize_map(self, fields: Option<usize>) -> Result<S::SerializeMap, S::Error> {
        let variant = self.variant.ok_or_else(|| no_place::<S>("a map"))?;
        let mut writing = self.inner.serialize_map(fields.map(|fields| fields + 1))?;
        writing.serialize_entry(self.tag, variant)?;
        Ok(writing)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        value.serialize(self)
    }

    no_place! {
        serialize_bool(bool) -> S::Ok;
        serialize_i8(i8) -> S::Ok;
        serialize_i16(i16) -> S::Ok;
        serialize_i32(i32) -> S::Ok;
        serialize_i64(i64) -> S::Ok;
        serialize_u8(u8) -> S::Ok;
        serialize_u16(u16) -> S::Ok;
        serialize_u32(u32) -> S::Ok;
        serialize_u64(u64) -> S::Ok;
        serialize_f32(f32) -> S::Ok;
        serialize_f64(f64) -> S::Ok;
        serialize_char(char) -> S::Ok;
        serialize_str(&str) -> S::Ok;
        serialize_bytes(&[u8]) -> S::Ok;
        serialize_none() -> S::Ok;
        serialize_unit() -> S::Ok;
        serialize_unit_struct(&'static str) -> S::Ok;
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
    }
}

/// The fields of a struct variant, in the struct that the tag began.
pub(crate) struct WritingFields<S>(S);

impl<S: SerializeStruct> SerializeStructVariant for WritingFields<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), S::Error> {
        self.0.serialize_field(key, value)
    }

    fn skip_field(&mut self, key: &'static str) -> Result<(), S::Error> {
        self.0.skip_field(key)
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}
