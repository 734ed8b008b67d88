//! A serde deserializer around another one, that drops unknown trailing fields and counts list elements.
//!
//! Serde tells a structure from a list only in the call (`deserialize_struct` or `deserialize_seq`), so the
//! call is where the two rules part ways; everything else is handed through, and wrapped again on its way to
//! nested values so that the rules hold at every depth.

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

/// Elements a list is given room for before any was read.
const LIST_CAPACITY_MAX: usize = 256;

/// The adapter. `list_elements_max` bounds every list and map below it.
pub(super) struct Tolerant<D> {
    inner: D,
    list_elements_max: usize,
}

impl<D> Tolerant<D> {
    pub(super) fn new(inner: D, list_elements_max: usize) -> Self {
        Self { inner, list_elements_max }
    }

    fn visitor<V>(&self, inner: V, kind: Kind) -> Wrapped<V> {
        Wrapped { inner, kind, list_elements_max: self.list_elements_max }
    }
}

/// What the value being decoded is to its caller.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Structure,
    Other,
}

macro_rules! hand_through {
    ($($method:ident)+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            let visitor = self.visitor(visitor, Kind::Other);
            self.inner.$method(visitor)
        })+
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Tolerant<D> {
    type Error = D::Error;

    hand_through! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32
        deserialize_i64 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string
        deserialize_bytes deserialize_byte_buf deserialize_option deserialize_unit
        deserialize_seq deserialize_map deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.visitor(visitor, Kind::Other);
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.visitor(visitor, Kind::Other);
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.visitor(visitor, Kind::Other);
        self.inner.deserialize_tuple(length, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.visitor(visitor, Kind::Other);
        self.inner.deserialize_tuple_struct(name, length, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.visitor(visitor, Kind::Structure);
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.visitor(visitor, Kind::Other);
        self.inner.deserialize_enum(name, variants, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// A visitor, seed or access object on its way to nested values.
struct Wrapped<T> {
    inner: T,
    kind: Kind,
    list_elements_max: usize,
}

impl<T> Wrapped<T> {
    fn with<U>(&self, inner: U) -> Wrapped<U> {
        Wrapped { inner, kind: Kind::Other, list_elements_max: self.list_elements_max }
    }

    /// Counts one more element; structures have as many as they have.
    fn count<E: serde::de::Error>(&self, seen: &mut usize) -> Result<(), E> {
        *seen += 1;
        if *seen > self.list_elements_max {
            return Err(E::custom(format_args!(
                "a list has more than {} elements",
                self.list_elements_max
            )));
        }
        Ok(())
    }
}

macro_rules! hand_value_through {
    ($($method:ident: $type:ty,)+) => {
        $(fn $method<E: serde::de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        })+
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Wrapped<V> {
    type Value = V::Value;

    hand_value_through! {
        visit_bool: bool, visit_i8: i8, visit_i16: i16, visit_i32: i32, visit_i64: i64,
        visit_u8: u8, visit_u16: u16, visit_u32: u32, visit_u64: u64,
        visit_f32: f32, visit_f64: f64, visit_char: char,
        visit_str: &str, visit_borrowed_str: &'de str, visit_string: String,
        visit_bytes: &[u8], visit_borrowed_bytes: &'de [u8], visit_byte_buf: Vec<u8>,
    }

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.expecting(out)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Tolerant::new(value, self.list_elements_max))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Tolerant::new(value, self.list_elements_max))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<V::Value, A::Error> {
        let counted = self.kind == Kind::Other;
        let mut elements = Elements { sequence: self.with(sequence), counted, seen: 0 };
        let value = self.inner.visit_seq(&mut elements)?;
        if self.kind == Kind::Structure {
            // Fields that a newer peer has added.
            while elements.sequence.inner.next_element::<IgnoredAny>()?.is_some() {}
        }
        Ok(value)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        if self.kind == Kind::Structure {
            return Err(A::Error::custom("a structure is an array, not a map"));
        }
        let entries = Entries { map: self.with(map), seen: 0 };
        self.inner.visit_map(entries)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.inner.visit_enum(access)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Wrapped<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Tolerant::new(value, self.list_elements_max))
    }
}

struct Elements<A> {
    sequence: Wrapped<A>,
    counted: bool,
    seen: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let seed = self.sequence.with(seed);
        let element = self.sequence.inner.next_element_seed(seed)?;
        if self.counted && element.is_some() {
            self.sequence.count(&mut self.seen)?;
        }
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.sequence.inner.size_hint().map(|claimed| claimed.min(LIST_CAPACITY_MAX))
    }
}

struct Entries<A> {
    map: Wrapped<A>,
    seen: usize,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let seed = self.map.with(seed);
        let key = self.map.inner.next_key_seed(seed)?;
        if key.is_some() {
            self.map.count(&mut self.seen)?;
        }
        Ok(key)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.map.with(seed);
        self.map.inner.next_value_seed(seed)
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Wrapped<A> {
    type Error = A::Error;
    type Variant = Wrapped<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let wrapped = self.with(());
        let (value, variant) = self.inner.variant_seed(wrapped.with(seed))?;
        Ok((value, wrapped.with(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Wrapped<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.with(seed);
        self.inner.newtype_variant_seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.with(visitor);
        self.inner.tuple_variant(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = Wrapped { kind: Kind::Structure, ..self.with(visitor) };
        self.inner.struct_variant(fields, visitor)
    }
}
