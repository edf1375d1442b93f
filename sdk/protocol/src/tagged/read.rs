//! Finding the tag, then reading the variant.

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, EnumAccess, Error as _, IgnoredAny, MapAccess, VariantAccess, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt};

/// Reads the variant that the tag names.
pub(crate) struct Reader<'a> {
    variant: Cow<'a, str>,
    text: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A variant that something else names, whose fields are all of `text`.
    pub(crate) fn of(variant: &'static str, text: &'a RawValue) -> Self {
        Self { variant: Cow::Borrowed(variant), text: text.get().as_bytes() }
    }

    pub(crate) fn new(tag: &'static str, text: &'a RawValue) -> Result<Self, serde_json::Error> {
        let text = text.get().as_bytes();
        let variant = serde_json::Deserializer::from_slice(text).deserialize_map(FindTag(tag))?;
        Ok(Self { variant, text })
    }

    /// What the tag says.
    pub(crate) fn variant(&self) -> &str {
        &self.variant
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_enum(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

impl<'a> EnumAccess<'a> for Reader<'a> {
    type Error = serde_json::Error;
    type Variant = Fields<'a>;

    fn variant_seed<V: DeserializeSeed<'a>>(self, seed: V) -> Result<(V::Value, Fields<'a>), Self::Error> {
        let name: StrDeserializer<'_, Self::Error> = StrDeserializer::new(&self.variant);
        Ok((seed.deserialize(name)?, Fields(self.text)))
    }
}

/// The object again, now for the variant's fields; the tag is one that they do not know.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> VariantAccess<'a> for Fields<'a> {
    type Error = serde_json::Error;

    fn unit_variant(self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'a>>(self, seed: T) -> Result<T::Value, Self::Error> {
        seed.deserialize(&mut serde_json::Deserializer::from_slice(self.0))
    }

    fn tuple_variant<V: Visitor<'a>>(self, _: usize, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("a tuple has no place for a tag"))
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        serde_json::Deserializer::from_slice(self.0).deserialize_struct("", fields, visitor)
    }
}

struct FindTag(&'static str);

impl<'de> Visitor<'de> for FindTag {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with the field `{}`", self.0)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Cow<'de, str>, M::Error> {
        let mut found = None;
        while let Some(Name(field)) = map.next_key()? {
            if field != self.0 {
                map.next_value::<IgnoredAny>()?;
            } else if found.replace(map.next_value::<Name<'de>>()?.0).is_some() {
                return Err(M::Error::duplicate_field(self.0));
            }
        }
        found.ok_or_else(|| M::Error::missing_field(self.0))
    }
}

/// Text that is borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
