//! Schemas of what is read and answered, for an OpenAPI document.
//!
//! Those of answers come from the types that are written. Requests are read field by field, so that their schemas come
//! from types that exist for that alone; the tests hold them to the parsers, name by name and bound by bound.
#![expect(dead_code, reason = "only the schemas of these types are used")]

mod answers;
mod anthropic;
mod chat;
mod common;
mod completion;
mod responses;
mod shapes;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::Object;
use utoipa::openapi::{RefOr, Schema};

pub(crate) use answers::FinishReason;

use crate::unserved::{AdvisedRow, CHAT, COMMON, COMPLETION, MESSAGES, RESPONSES, Row};
use crate::{
    Answer, ChatChoice, ChatChunkChoice, CompletionChoice, DetokenizeAnswer, ModelList, TokenizeAnswer,
};

/// All schemas by name: the requests `…Request`, the answers, the data of events, and what these refer to.
pub fn schemas() -> BTreeMap<String, RefOr<Schema>> {
    let mut all = Schemas(BTreeMap::new());
    let shared = all.fields_of::<common::Generation>();
    all.request::<chat::ChatRequest>("ChatRequest", &[&shared], &[COMMON, CHAT]);
    all.request::<completion::CompletionRequest>("CompletionRequest", &[&shared], &[COMMON, COMPLETION]);
    all.request::<responses::ResponsesRequest>("ResponsesRequest", &[&shared], &[COMMON, &rows(RESPONSES)]);
    let conversation = all.fields_of::<anthropic::Conversation>();
    all.request::<anthropic::MessagesRequest>("MessagesRequest", &[&conversation], &[&rows(MESSAGES)]);
    all.request::<anthropic::Conversation>("CountTokensRequest", &[], &[&rows(MESSAGES)]);
    all.request::<completion::TokenizeText>("TokenizeText", &[], &[]);
    all.request::<completion::TokenizeChat>("TokenizeChat", &[], &[COMMON, CHAT]);
    let either = [shapes::refer::<completion::TokenizeText>(), shapes::refer::<completion::TokenizeChat>()];
    all.insert("TokenizeRequest".to_owned(), shapes::one_of(either));
    all.add::<completion::DetokenizeRequest>();

    all.add_as::<Answer<'_, ChatChoice>>("ChatCompletion");
    all.add::<ChatChoice>();
    all.add_as::<Answer<'_, ChatChunkChoice>>("ChatCompletionChunk");
    all.add::<ChatChunkChoice>();
    all.add_as::<Answer<'_, CompletionChoice>>("Completion");
    all.add::<CompletionChoice>();
    all.add::<responses::ResponsesAnswer>();
    all.add::<responses::ResponsesEvent>();
    all.add::<anthropic::MessagesAnswer>();
    all.add::<anthropic::MessagesEvent>();
    all.add::<anthropic::TokenCount>();
    all.add::<anthropic::MessagesError>();
    all.add::<TokenizeAnswer>();
    all.add::<DetokenizeAnswer>();
    all.add::<ModelList>();
    all.add::<answers::Error>();
    all.0
}

struct Schemas(BTreeMap<String, RefOr<Schema>>);

impl Schemas {
    fn add<T: ToSchema>(&mut self) {
        self.add_as::<T>(&T::name());
    }

    /// The schema of `T`, and those that it refers to.
    fn add_as<T: ToSchema>(&mut self, name: &str) {
        self.add_referred::<T>();
        self.insert(name.to_owned(), T::schema());
    }

    /// A request of `T`'s fields, those that it shares, and those that are refused where they ask for something.
    fn request<T: ToSchema>(&mut self, name: &str, shared: &[&Object], refused: &[&[Row]]) {
        let mut fields = self.fields_of::<T>();
        for shared in shared {
            fields.required.extend(shared.required.iter().cloned());
            fields.properties.extend(shared.properties.clone());
        }
        for (name, harmless) in refused.iter().copied().flatten() {
            fields.properties.insert((*name).to_owned(), refused_field(harmless));
        }
        self.insert(name.to_owned(), Schema::Object(fields).into());
    }

    fn fields_of<T: ToSchema>(&mut self) -> Object {
        self.add_referred::<T>();
        match T::schema() {
            RefOr::T(Schema::Object(fields)) => fields,
            _ => unreachable!("the schema of a struct is an object"),
        }
    }

    fn add_referred<T: ToSchema>(&mut self) {
        let mut referred = Vec::new();
        T::schemas(&mut referred);
        referred.into_iter().for_each(|(name, schema)| self.insert(name, schema));
    }

    fn insert(&mut self, name: String, schema: RefOr<Schema>) {
        let other = self.0.get(&name).filter(|other| **other != schema);
        assert!(other.is_none(), "two types are named {name}");
        self.0.insert(name, schema);
    }
}

/// What is advised is for the error alone.
fn rows(advised: &[AdvisedRow]) -> Vec<Row> {
    advised.iter().map(|&(name, harmless, _)| (name, harmless)).collect()
}

/// Accepted where it asks for nothing.
fn refused_field(harmless: &[&str]) -> RefOr<Schema> {
    let mut values = vec![Value::Null];
    for value in harmless.iter().filter_map(|text| serde_json::from_str::<Value>(text).ok()) {
        let stands = |other: &Value| value.is_number() && other.as_f64() == value.as_f64(); // 1.0 is 1
        if !values.iter().any(stands) {
            values.push(value);
        }
    }
    shapes::only(values, "Not supported beyond these values.")
}
