//! What a request is answered that cannot be served: a status, and JSON that says why.

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::Error;

/// A refusal: `{"error": message}` under `status`.
#[derive(Debug)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// What is wrong, for a person.
    pub message: String,
}

/// The answer to a request, or why there is none.
pub type Answer<T> = Result<T, ApiError>;

impl ApiError {
    /// A refusal with its reason.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into() }
    }

    /// 400: the request makes no sense.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404: there is no such thing.
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 503: others are served first.
    pub fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is busy; try again in a moment")
    }

    /// 500: a bug of ours.
    pub fn internal(what: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}; this is a bug in lemniscate"))
    }

    /// An image that cannot be read, called `name`: the sender's fault with `status` 4xx, the data set's with 5xx. The
    /// reason is given, the path is not.
    pub fn image(status: StatusCode, name: &str, error: &Error) -> Self {
        match error {
            Error::Image { reason, .. } => Self::new(status, format!("{name}: {reason}")),
            other => Self::new(status, format!("{name}: {other}")),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        // A set or an image number that cannot be is one that there is not.
        Self::missing(rejection.body_text())
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}
