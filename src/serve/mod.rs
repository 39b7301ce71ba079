//! A local page to look at a run: search by image, curves, a map of the bank; and the JSON behind it.
//!
//! [`Server::bind`] takes the address, [`State`] is what is served, [`Server::run`] answers until it is told to stop.
//! Images leave only by their index in the data set; nothing is served from a path. Uploads are bounded in bytes,
//! number and time, decoded under the limits of training images, and never written to a disk.
//!
//! Searches are exact ([`crate::eval::knn::nearest`]): their time and the bank's memory grow linearly with its rows.

mod api;
mod embedder;
mod error;
mod guard;
mod map;
mod metrics;
mod page;
mod state;
mod thumbnails;

use std::future::Future;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use tokio::sync::oneshot;
use tokio::time::timeout;

pub use self::state::{Facts, MAX_UPLOAD, State};

use self::guard::Names;
use crate::error::{Error, Result};

/// How long requests under way may take once the server is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// An address that is taken; requests wait until [`run`](Self::run).
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    host: String,
}

impl Server {
    /// Listens at `host` (a name or an address) and `port`; 0 is any that is free.
    ///
    /// # Errors
    /// [`Error::Usage`] if the port is in use, or the address is not this machine's.
    pub fn bind(host: &str, port: u16) -> Result<Self> {
        let refuse = |e: std::io::Error| Error::Usage {
            message: match e.kind() {
                ErrorKind::AddrInUse => format!("port {port} of {host} is in use"),
                _ => format!("cannot listen at {host}, port {port}: {e}"),
            },
            hint: (e.kind() == ErrorKind::AddrInUse)
                .then(|| "--port takes another one, --port 0 any that is free".into()),
        };
        let listener = TcpListener::bind((host, port)).map_err(refuse)?;
        listener.set_nonblocking(true).map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        Ok(Server { listener, address, host: host.to_owned() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        self.address.ip().to_canonical().is_loopback()
    }

    /// Answers requests until `stop` is there; then those under way have some seconds to finish.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn run(self, state: State, stop: impl Future<Output = ()>) -> Result<()> {
        let failed = |e| Error::io(self.address.to_string(), "serve", e);
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(failed)?;
        let names = Names::of(self.address.ip(), &self.host);
        let (stopping, told) = oneshot::channel::<()>();
        let serving = axum::serve(listener, router(state, names)).with_graceful_shutdown(async move {
            let _ = told.await;
        });
        let serving = tokio::spawn(serving.into_future());
        stop.await;
        drop(stopping);
        match timeout(GRACE, serving).await {
            Ok(Ok(served)) => served.map_err(failed),
            // What takes longer is cut off; nothing is lost by that.
            _ => Ok(()),
        }
    }
}

fn router(state: State, names: Names) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/api", get(api::describe))
        .route("/api/status", get(api::status))
        .route("/api/search", get(api::search_by_index).post(api::search_by_upload))
        .route("/api/random", get(api::random))
        .route("/api/images", get(api::images))
        .route("/api/images/{set}/{index}", get(api::image))
        .route("/api/images/{set}/{index}/thumbnail", get(api::thumbnail))
        .route("/api/map", get(api::map))
        .route("/api/metrics", get(api::metrics))
        .route("/api/curves.svg", get(api::curves))
        .fallback(api::nothing)
        .method_not_allowed_fallback(api::wrong_method)
        .layer(DefaultBodyLimit::max(MAX_UPLOAD))
        .layer(from_fn_with_state(names, guard::guard))
        .with_state(Arc::new(state))
}
