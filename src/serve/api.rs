//! The JSON API: what is served under `/api`.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, Path, Query, Request, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::error::{Answer, ApiError};
use super::state::{self, MAX_UPLOAD, Set, State};
use crate::data::decode::decode_bytes;
use crate::page::{data_uri, thumbnail_jpeg};

/// Neighbours that one search may ask for.
pub const MAX_K: usize = 200;
/// Sides of thumbnails in pixels: smallest, largest.
const SIDES: (u32, u32) = (16, 512);
/// Images that one list may hold.
const MAX_LISTED: u32 = 500;
/// How long an upload may take to arrive.
const UPLOAD_TIME: Duration = Duration::from_secs(30);
/// What an uploaded image is called in errors.
const UPLOADED: &str = "the uploaded image";

type Asked<T> = Result<Query<T>, QueryRejection>;
type Named<T> = Result<Path<T>, PathRejection>;

/// Number of neighbours.
#[derive(Deserialize)]
pub struct K {
    k: Option<usize>,
}

impl K {
    fn checked(&self) -> Answer<usize> {
        match self.k.unwrap_or(20) {
            k @ 1..=MAX_K => Ok(k),
            k => Err(ApiError::bad(format!("k must be 1 to {MAX_K}, not {k}"))),
        }
    }
}

/// A query that is an image of the data set.
#[derive(Deserialize)]
pub struct ByIndex {
    set: Option<Set>,
    index: u32,
    k: Option<usize>,
}

/// A part of the list of images.
#[derive(Deserialize)]
pub struct Listed {
    set: Option<Set>,
    from: Option<u32>,
    count: Option<u32>,
}

/// A set.
#[derive(Deserialize)]
pub struct OfSet {
    set: Option<Set>,
}

/// A size of thumbnail.
#[derive(Deserialize)]
pub struct Side {
    side: Option<u32>,
}

/// `GET /api`: what there is.
pub async fn describe() -> Json<Value> {
    let get = |path: &str, does: &str| json!({ "method": "GET", "path": path, "does": does });
    Json(json!({
        "program": concat!("lemniscate ", env!("CARGO_PKG_VERSION")),
        "about": "Errors are {\"error\": text} with a status of 4xx or 5xx. SET is train (the default) or test; images are numbered from 0.",
        "limits": { "k": MAX_K, "upload_bytes": MAX_UPLOAD, "thumbnail_side": SIDES, "listed": MAX_LISTED },
        "endpoints": [
            get("/api/status", "what is served, how many images, which classes"),
            get("/api/search?index=I&set=SET&k=K", "the K (20) training images nearest to an image"),
            json!({ "method": "POST", "path": "/api/search?k=K",
                "does": "the same for the image that is the body: the file's bytes as they are" }),
            get("/api/random?set=SET", "some image"),
            get("/api/images?set=SET&from=I&count=N", "names and classes of N (50) images from I on"),
            get("/api/images/SET/I", "name and class of an image"),
            get("/api/images/SET/I/thumbnail?side=S", "it as JPEG, its long side at most S (128) pixels"),
            get("/api/map", "the bank's rows in the plane of their first two principal components"),
            get("/api/metrics", "the newest numbers of the run, while it trains too"),
            get("/api/curves.svg", "its curves"),
        ],
    }))
}

/// `GET /api/status`.
pub async fn status(Shared(state): Shared<Arc<State>>) -> Answer<Json<Value>> {
    let (searched, dim) = state.searched();
    let train = state.images(Set::Train)?;
    let mut status = json!({
        "images": train.len(), "test_images": state.n_test(), "searched": searched, "embed_dim": dim,
        "classes": train.classes(),
    });
    if let (Value::Object(status), Ok(Value::Object(facts))) =
        (&mut status, serde_json::to_value(&state.facts))
    {
        status.extend(facts);
    }
    Ok(Json(status))
}

/// `GET /api/images`.
pub async fn images(Shared(state): Shared<Arc<State>>, asked: Asked<Listed>) -> Answer<Json<Value>> {
    let Query(Listed { set, from, count }) = asked?;
    let set = set.unwrap_or(Set::Train);
    let total = state.images(set)?.len();
    let (from, count) = (from.unwrap_or(0), count.unwrap_or(50));
    if count > MAX_LISTED {
        return Err(ApiError::bad(format!("count must be at most {MAX_LISTED}, not {count}")));
    }
    let end = from.saturating_add(count).min(total as u32);
    let images = (from..end).map(|index| state.describe(set, index)).collect::<Answer<Vec<Value>>>()?;
    Ok(Json(json!({ "total": total, "images": images })))
}

/// `GET /api/images/{set}/{index}`.
pub async fn image(Shared(state): Shared<Arc<State>>, named: Named<(Set, u32)>) -> Answer<Json<Value>> {
    let Path((set, index)) = named?;
    Ok(Json(state.describe(set, index)?))
}

/// `GET /api/images/{set}/{index}/thumbnail`.
pub async fn thumbnail(
    Shared(state): Shared<Arc<State>>,
    named: Named<(Set, u32)>,
    asked: Asked<Side>,
) -> Answer<impl IntoResponse> {
    let Path((set, index)) = named?;
    let Query(Side { side }) = asked?;
    let side = side.unwrap_or(128);
    if !(SIDES.0..=SIDES.1).contains(&side) {
        return Err(ApiError::bad(format!("side must be {} to {} pixels, not {side}", SIDES.0, SIDES.1)));
    }
    let key = (set, index, side);
    let picture = match state.thumbnails.get(&key) {
        Some(picture) => picture,
        None => {
            let picture = state.load(set, index, move |image| thumbnail_jpeg(&image, side)).await?;
            let picture = Bytes::from(picture);
            state.thumbnails.insert(key, picture.clone());
            picture
        }
    };
    Ok(([(header::CONTENT_TYPE, "image/jpeg")], picture))
}

/// `GET /api/random`.
pub async fn random(Shared(state): Shared<Arc<State>>, asked: Asked<OfSet>) -> Answer<Json<Value>> {
    let Query(OfSet { set }) = asked?;
    let set = set.unwrap_or(Set::Train);
    // The standard library's hash keys are random; nothing here has to be repeatable.
    let index = state.pick(set, RandomState::new().build_hasher().finish())?;
    Ok(Json(state.describe(set, index)?))
}

/// `GET /api/search`.
pub async fn search_by_index(
    Shared(state): Shared<Arc<State>>,
    asked: Asked<ByIndex>,
) -> Answer<Json<Value>> {
    let Query(ByIndex { set, index, k }) = asked?;
    let (set, k) = (set.unwrap_or(Set::Train), K { k }.checked()?);
    let described = state.describe(set, index)?;
    let start = Instant::now();
    let query = state.query_of(set, index).await?;
    answer(&state, described, query, k, start.elapsed()).await
}

/// `POST /api/search`.
pub async fn search_by_upload(
    Shared(state): Shared<Arc<State>>,
    asked: Asked<K>,
    request: Request,
) -> Answer<Json<Value>> {
    let k = asked?.checked()?;
    let too_large = || {
        let text = format!("an image may have {} MiB, not more", MAX_UPLOAD >> 20);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length.and_then(|length| length.parse().ok()).is_some_and(|length: u64| length > MAX_UPLOAD as u64) {
        return Err(too_large());
    }
    // Taken before the body is read: so many bodies are in memory at most, and none for ever.
    let held = state.upload_permit().await?;
    let body = match timeout(UPLOAD_TIME, Bytes::from_request(request, &())).await {
        Err(_) => return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the upload took too long")),
        Ok(Err(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => return Err(too_large()),
        Ok(body) => body?,
    };
    let start = Instant::now();
    let decoded = state.decode(move || {
        let image = decode_bytes(&body, UPLOADED)?;
        let preview = data_uri("image/jpeg", &thumbnail_jpeg(&image, 256));
        Ok((image, preview))
    });
    let (image, preview) = decoded
        .await?
        .map_err(|error: crate::Error| ApiError::image(StatusCode::BAD_REQUEST, UPLOADED, &error))?;
    let (width, height) = image.dimensions();
    let query = state.query(image).await?;
    drop(held);
    let described = json!({ "set": null, "width": width, "height": height, "thumbnail": preview });
    answer(&state, described, query, k, start.elapsed()).await
}

/// Searches, and describes what was found.
async fn answer(
    state: &State,
    described: Value,
    query: state::Query,
    k: usize,
    embedding_took: Duration,
) -> Answer<Json<Value>> {
    let (found, search_took) = state.search(query, k).await?;
    let (indices, similarities) = match found.queries {
        0 => (&[][..], &[][..]),
        _ => found.of(0),
    };
    let mut neighbors = Vec::with_capacity(indices.len());
    for (rank, (&index, similarity)) in indices.iter().zip(similarities).enumerate() {
        let mut neighbor = state.describe(Set::Train, index)?;
        let label = |image: &Value| image.get("label").filter(|label| !label.is_null()).cloned();
        let same = label(&described).zip(label(&neighbor)).map(|(query, neighbor)| query == neighbor);
        neighbor["rank"] = (rank + 1).into();
        neighbor["similarity"] = json!(similarity);
        neighbor["same"] = json!(same);
        neighbors.push(neighbor);
    }
    let ms = |took: Duration| (took.as_secs_f64() * 1e4).round() / 10.0;
    Ok(Json(json!({
        "query": described,
        "neighbors": neighbors,
        "searched": state.searched().0,
        "embedding_ms": ms(embedding_took),
        "search_ms": ms(search_took),
    })))
}

/// `GET /api/map`.
pub async fn map(Shared(state): Shared<Arc<State>>) -> Answer<impl IntoResponse> {
    let map = state.map().await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], map.to_string()))
}

/// `GET /api/metrics`.
pub async fn metrics(Shared(state): Shared<Arc<State>>) -> Answer<Json<Value>> {
    Ok(Json(snapshot(&state).await?.summary.clone()))
}

/// `GET /api/curves.svg`.
pub async fn curves(Shared(state): Shared<Arc<State>>) -> Answer<impl IntoResponse> {
    let svg = snapshot(&state).await?.svg.clone();
    Ok(([(header::CONTENT_TYPE, "image/svg+xml")], svg))
}

async fn snapshot(state: &State) -> Answer<Arc<super::metrics::Snapshot>> {
    let metrics = Arc::clone(&state.metrics);
    let read = tokio::task::spawn_blocking(move || metrics.read()).await;
    let read = read.map_err(|_| ApiError::internal("reading the metrics panicked"))?;
    let failed = |error: crate::Error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    read.map_err(failed)?.ok_or_else(|| ApiError::missing("there are no metrics of this run (yet)"))
}

/// Everything else.
pub async fn nothing() -> ApiError {
    ApiError::missing("there is nothing here; /api says what there is")
}

/// A known place, asked in a way that it does not understand.
pub async fn wrong_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this cannot be asked so; /api says how")
}
