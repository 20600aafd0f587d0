//! Schemas that a type alone does not tell.

use serde_json::Value;
use utoipa::openapi::schema::{
    AdditionalProperties, Array, ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::common::{BIASES_MAX, SEQUENCES_MAX, STOP_BYTES_MAX, STOPS_MAX};
use crate::constraint::CHOICES_MAX;

/// A type by the name of a schema that is written out, and the types that it refers to.
macro_rules! shape {
    ($name:ident $([$($part:ty),+])?: $description:literal = $schema:expr) => {
        pub(super) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $crate::schema::shapes::described($schema.into(), $description)
            }
        }

        impl ToSchema for $name {
            #[allow(unused_variables, reason = "most refer to none")]
            fn schemas(all: &mut Vec<(String, RefOr<Schema>)>) {
                $($(
                    all.push((<$part>::name().into(), <$part>::schema()));
                    <$part>::schemas(all);
                )+)?
            }
        }
    };
}
pub(super) use shape;

shape!(Refused: "Not supported: nothing but null." = Object::with_type(Type::Null));

shape!(StopText: "At most 1024 bytes, so fewer characters where they are not ASCII."
    = text(1, Some(STOP_BYTES_MAX)));

shape!(Stop [StopText]: "One text or several."
    = one_of([refer::<StopText>(), list(refer::<StopText>(), 0, Some(STOPS_MAX))]));

shape!(Prompt: "A text, several, the token ids of one, or of several." = {
    let ids = || list(token_id(), 1, None);
    let several = |item| list(item, 1, Some(SEQUENCES_MAX));
    one_of([of_type(Type::String), several(of_type(Type::String)), ids(), several(ids())])
});

shape!(TokenId: "Below the size of the vocabulary." = token_id());

shape!(BadWord: "At most 128 bytes, so fewer characters where they are not ASCII." = text(1, Some(128)));

shape!(AllowedIds [TokenId]: "No other tokens are drawn. Each stands there once."
    = ArrayBuilder::new().items(refer::<TokenId>()).min_items(Some(1)).unique_items(true));

shape!(Truncation: "Keep so many of the prompt's last tokens; -1: as many as the context has room for." = {
    let fit = object(Type::Integer).enum_values(Some([-1])).build();
    one_of([fit.into(), object(Type::Integer).minimum(Some(1)).build().into()])
});

shape!(LogitBias: "From token id, as a decimal number, to what is added to its logit; -100 bans it." = {
    let bias = object(Type::Number).minimum(Some(-100)).maximum(Some(100)).build();
    let id = object(Type::String).pattern(Some("^(0|[1-9][0-9]*)$")).build();
    map(bias, id, BIASES_MAX)
});

shape!(Metadata: "Any texts." = {
    map(text(0, Some(512)), text(0, Some(64)), 16)
});

shape!(JsonSchema: "A JSON schema. A keyword that cannot be enforced is refused by name."
    = one_of([of_type(Type::Object), of_type(Type::Boolean)]));

shape!(JsonSchemaOrText: "A JSON schema, or its JSON text." = {
    let text = object(Type::String).content_media_type("application/json");
    let text = text.examples([r#"{"type":"object"}"#]).build();
    one_of([of_type(Type::Object), of_type(Type::Boolean), text.into()])
});

shape!(ObjectSchema: "A JSON schema whose `type` is `object`." = Object::with_type(Type::Object));

shape!(Choices: "Texts, each of them once."
    = ArrayBuilder::new().items(text(1, None)).min_items(Some(1)).max_items(Some(CHOICES_MAX)).unique_items(true));

shape!(Yes: "Nothing but true." = object(Type::Boolean).enum_values(Some([true])));

shape!(AnyObject: "An object of any keys." = Object::with_type(Type::Object));

/// One of these JSON values, whatever their types.
pub(super) fn only(values: Vec<Value>, description: &str) -> RefOr<Schema> {
    object(SchemaType::AnyValue).enum_values(Some(values)).description(Some(description)).build().into()
}

pub(super) fn refer<T: ToSchema>() -> RefOr<Schema> {
    Ref::from_schema_name(T::name()).into()
}

pub(super) fn list(item: impl Into<RefOr<Schema>>, n_min: usize, n_max: Option<usize>) -> RefOr<Schema> {
    let item: RefOr<Schema> = item.into();
    let n_min = (n_min > 0).then_some(n_min);
    Schema::Array(ArrayBuilder::new().items(item).min_items(n_min).max_items(n_max).build()).into()
}

/// Exactly one of them.
pub(super) fn one_of(items: impl IntoIterator<Item = RefOr<Schema>>) -> RefOr<Schema> {
    let all = items.into_iter().fold(OneOfBuilder::new(), |all, item| all.item(item));
    Schema::OneOf(all.build()).into()
}

pub(super) fn of_type(type_: Type) -> RefOr<Schema> {
    Object::with_type(type_).into()
}

pub(super) fn described(mut schema: RefOr<Schema>, description: &str) -> RefOr<Schema> {
    let description = Some(description.to_owned());
    match &mut schema {
        RefOr::T(Schema::Object(object)) => object.description = description,
        RefOr::T(Schema::Array(Array { description: place, .. })) => *place = description,
        RefOr::T(Schema::OneOf(one_of)) => one_of.description = description,
        _ => {}
    }
    schema
}

fn object(type_: impl Into<SchemaType>) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(type_)
}

/// A string of so many characters.
fn text(length_min: usize, length_max: Option<usize>) -> Object {
    let length_min = (length_min > 0).then_some(length_min);
    object(Type::String).min_length(length_min).max_length(length_max).build()
}

fn token_id() -> Object {
    object(Type::Integer).minimum(Some(0)).build()
}

fn map(value: Object, key: Object, n_max: usize) -> Object {
    object(Type::Object)
        .additional_properties(Some(AdditionalProperties::from(Schema::Object(value))))
        .property_names(Some(Schema::Object(key)))
        .max_properties(Some(n_max))
        .build()
}
