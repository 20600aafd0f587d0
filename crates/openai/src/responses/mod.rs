//! `POST /v1/responses`: a request read, its answer and its events. Nothing is kept between two requests.

mod events;
mod items;
mod request;

pub use events::{Events, Header};
pub use request::ResponsesRequest;
