//! `GET /v1/models`.

use serde::Serialize;
use utoipa::ToSchema;

/// One served name.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Model {
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    pub owned_by: &'static str,
    pub max_model_len: usize,
    pub root: String,
    #[schema(required)]
    pub parent: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<Model>,
}
