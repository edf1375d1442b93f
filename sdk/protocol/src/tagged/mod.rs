//! Enums in JSON whose variant is named by one of their own fields, as `serde(tag = "…")` writes them.
//!
//! What serde derives for these reads every value into a tree first, because the tag may come last, and then reads
//! the tree: for each type a second reader, which was a tenth of what a browser loads. JSON text is there to be read
//! again, so this looks for the tag and then reads the variant from the text. Types declare `#[serde(remote =
//! "Self")]` without a tag, and name it in [`tagged!`](crate::tagged::tagged).

mod read;
mod write;

use serde::{
    Deserialize as _, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::value::RawValue;
pub(crate) use {read::Reader, write::Writer};

/// `tagged!("type": First, Second)`: both directions for enums that derive them with `#[serde(remote = "Self")]`.
macro_rules! tagged {
    ($tag:literal: $($name:ty),+) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Self::serialize(self, $crate::tagged::Writer::new($tag, serializer))
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = $crate::tagged::text(deserializer)?;
                let read = $crate::tagged::Reader::new($tag, &text).and_then(Self::deserialize);
                read.map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use tagged;

/// The text of one value.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<RawValue>, D::Error> {
    Box::<RawValue>::deserialize(deserializer)
}

/// Reads two types, each of which takes its own fields, from one object: what `#[serde(flatten)]` writes.
pub(crate) fn both<'de, A: DeserializeOwned, B: DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<(A, B), D::Error> {
    let text = text(deserializer)?;
    Ok((parse(&text).map_err(D::Error::custom)?, parse(&text).map_err(D::Error::custom)?))
}

/// Always from a slice: one reader per type.
fn parse<T: DeserializeOwned>(text: &RawValue) -> Result<T, serde_json::Error> {
    serde_json::from_slice(text.get().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};
    use serde_json::{from_str, from_value, json, to_value};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Body {
        count: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    }

    /// As serde does it, to be compared with.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Derived {
        Nothing,
        Fields {
            first: u8,
            second: Vec<String>,
        },
        Whole(Body),
        #[serde(rename = "both")]
        Flattened {
            name: String,
            #[serde(flatten)]
            body: Body,
        },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(remote = "Self", rename_all = "snake_case")]
    enum Ours {
        Nothing,
        Fields {
            first: u8,
            second: Vec<String>,
        },
        Whole(Body),
        #[serde(rename = "both", deserialize_with = "flattened")]
        Flattened {
            name: String,
            #[serde(flatten)]
            body: Body,
        },
    }
    tagged!("kind": Ours);

    fn flattened<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(String, Body), D::Error> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        both(deserializer).map(|(named, body): (Named, Body)| (named.name, body))
    }

    fn derived() -> impl Strategy<Value = Derived> {
        let body = || (any::<u64>(), any::<Option<String>>()).prop_map(|(count, note)| Body { count, note });
        prop_oneof![
            Just(Derived::Nothing),
            any::<(u8, Vec<String>)>().prop_map(|(first, second)| Derived::Fields { first, second }),
            body().prop_map(Derived::Whole),
            (any::<String>(), body()).prop_map(|(name, body)| Derived::Flattened { name, body }),
        ]
    }

    proptest! {
        #[test]
        fn it_writes_and_reads_what_serde_does(value in derived()) {
            let text = serde_json::to_string(&value).expect("writes");
            let ours: Ours = from_str(&text).expect("reads what serde wrote");
            prop_assert_eq!(serde_json::to_string(&ours).expect("writes"), text.clone());
            let from_reader: Ours = serde_json::from_reader(text.as_bytes()).expect("reads a stream");
            prop_assert_eq!(&from_reader, &ours);
            // A tree sorts its fields, so the tag stands anywhere.
            let tree = to_value(&value).expect("writes");
            prop_assert_eq!(from_value::<Ours>(tree.clone()).expect("reads a tree"), ours);
            prop_assert_eq!(to_value(from_str::<Derived>(&text).expect("reads")).expect("writes"), tree);
        }

        #[test]
        fn it_refuses_what_serde_refuses(value in derived(), at: prop::sample::Index, byte: u8) {
            let mut text = serde_json::to_vec(&value).expect("writes");
            let at = at.index(text.len());
            text[at] = byte;
            let theirs: Option<Derived> = serde_json::from_slice(&text).ok();
            let ours: Option<Ours> = serde_json::from_slice(&text).ok();
            let same = |value: Option<&Ours>| value.map(|value| to_value(value).expect("writes"));
            prop_assert_eq!(same(ours.as_ref()), theirs.map(|value| to_value(value).expect("writes")));
        }
    }

    #[test]
    fn errors_name_the_field() {
        let error = |text: &str| from_str::<Ours>(text).expect_err("is refused").to_string();
        assert!(error(r#"{"first":1}"#).contains("missing field `kind`"));
        assert!(error(r#"{"kind":"nothing","kind":"nothing"}"#).contains("duplicate field `kind`"));
        assert!(error(r#"{"kind":"other"}"#).contains("unknown variant `other`, expected one of `nothing`"));
        assert!(error(r#"{"kind":"fields","first":1}"#).contains("missing field `second`"));
        assert!(error(r#"["kind"]"#).contains("expected an object with the field `kind`"));
        assert_eq!(
            from_value::<Ours>(json!({ "more": [1], "kind": "nothing" })).expect("reads"),
            Ours::Nothing
        );
    }
}
