//! A serde deserializer around another one, that drops unknown trailing fields, counts list elements and
//! remembers which field it is in.
//!
//! Serde tells a structure from a list only in the call (`deserialize_struct` or `deserialize_seq`), so the
//! call is where the two rules part ways; everything else is handed through, and wrapped again on its way to
//! nested values so that the rules hold at every depth.

use std::cell::Cell;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

/// Elements a list is given room for before any was read.
const LIST_CAPACITY_MAX: usize = 256;

/// The field that was begun last: where decoding is, and where it has stopped after an error.
#[derive(Default)]
pub(super) struct Trace {
    field: Cell<Option<(&'static str, &'static str)>>,
}

impl Trace {
    /// Names of the structure and of its field; `None` before the first.
    pub(super) fn field(&self) -> Option<(&'static str, &'static str)> {
        self.field.get()
    }
}

/// What holds for a value and for everything inside it.
#[derive(Clone, Copy)]
struct Rules<'t> {
    list_elements_max: usize,
    trace: &'t Trace,
}

/// The adapter. `list_elements_max` bounds every list and map below it.
pub(super) struct Tolerant<'t, D> {
    inner: D,
    rules: Rules<'t>,
}

impl<'t, D> Tolerant<'t, D> {
    pub(super) fn new(inner: D, list_elements_max: usize, trace: &'t Trace) -> Self {
        Self { inner, rules: Rules { list_elements_max, trace } }
    }

    fn visitor<V>(&self, inner: V, kind: Kind) -> Wrapped<'t, V> {
        Wrapped { inner, kind, rules: self.rules }
    }
}

/// What the value being decoded is to its caller.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Structure { name: &'static str, fields: &'static [&'static str] },
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

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Tolerant<'_, D> {
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
        let visitor = self.visitor(visitor, Kind::Structure { name, fields });
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
struct Wrapped<'t, T> {
    inner: T,
    kind: Kind,
    rules: Rules<'t>,
}

impl<'t, T> Wrapped<'t, T> {
    fn with<U>(&self, inner: U) -> Wrapped<'t, U> {
        Wrapped { inner, kind: Kind::Other, rules: self.rules }
    }

    /// Counts one more element; structures have as many as they have.
    fn count<E: serde::de::Error>(&self, seen: &mut usize) -> Result<(), E> {
        *seen += 1;
        let elements_max = self.rules.list_elements_max;
        if *seen > elements_max {
            return Err(E::custom(format_args!("a list has more than {elements_max} elements")));
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

impl<'de, V: Visitor<'de>> Visitor<'de> for Wrapped<'_, V> {
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
        self.inner.visit_some(Tolerant { inner: value, rules: self.rules })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Tolerant { inner: value, rules: self.rules })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<V::Value, A::Error> {
        let mut elements = Elements { sequence: self.with(sequence), kind: self.kind, seen: 0 };
        let value = self.inner.visit_seq(&mut elements)?;
        if let Kind::Structure { .. } = self.kind {
            // Fields that a newer peer has added; what is wrong there is in no field that has a name.
            elements.sequence.rules.trace.field.set(None);
            while elements.sequence.inner.next_element::<IgnoredAny>()?.is_some() {}
        }
        Ok(value)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        if let Kind::Structure { name, .. } = self.kind {
            return Err(A::Error::custom(format_args!("{name} is an array, not a map")));
        }
        let entries = Entries { map: self.with(map), seen: 0 };
        self.inner.visit_map(entries)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.with(access);
        self.inner.visit_enum(access)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Wrapped<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Tolerant { inner: value, rules: self.rules })
    }
}

struct Elements<'t, A> {
    sequence: Wrapped<'t, A>,
    kind: Kind,
    seen: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        if let Kind::Structure { name, fields } = self.kind {
            let field = fields.get(self.seen).map(|field| (name, *field));
            self.sequence.rules.trace.field.set(field);
            self.seen += 1;
        }
        let seed = self.sequence.with(seed);
        let element = self.sequence.inner.next_element_seed(seed)?;
        if self.kind == Kind::Other && element.is_some() {
            self.sequence.count(&mut self.seen)?;
        }
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.sequence.inner.size_hint().map(|claimed| claimed.min(LIST_CAPACITY_MAX))
    }
}

struct Entries<'t, A> {
    map: Wrapped<'t, A>,
    seen: usize,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<'_, A> {
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

impl<'de, 't, A: EnumAccess<'de>> EnumAccess<'de> for Wrapped<'t, A> {
    type Error = A::Error;
    type Variant = Wrapped<'t, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let wrapped = self.with(());
        let (value, variant) = self.inner.variant_seed(wrapped.with(seed))?;
        Ok((value, wrapped.with(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Wrapped<'_, A> {
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
        let kind = Kind::Structure { name: "a variant", fields };
        let visitor = Wrapped { kind, ..self.with(visitor) };
        self.inner.struct_variant(fields, visitor)
    }
}
