//! Accepting connections, and ending in good order.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Request, Response, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::app::{App, Phase};
use crate::connection::{HeldBody, Liveness, Socket};
use crate::limit::Peer;
use crate::watchdog::{EngineFault, watch};

/// Pause after a failed accept (no file descriptors left): nothing else would slow the loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Of one connection, for what comes and again for what goes: a head that is larger is refused by hyper.
const BUFFER_BYTES_MAX: usize = 128 << 10;

/// Serves until `shutdown` resolves, then lets running requests finish within the grace period.
///
/// While they finish, the port still answers: new requests hear 503. If the engine dies or gets stuck,
/// all requests end with an error, and this returns without waiting for the engine.
pub async fn run(
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> Result<(), EngineFault> {
    let router = crate::routes::router(&app);
    let (closing, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let mut watch = pin!(watch(app.options().step_timeout, || app.pulse()));
    let mut fault = None;
    let mut deadline: Option<Instant> = None;
    let mut grace_is_over = false;
    let connections_max = app.options().connections_max;
    loop {
        tokio::select! {
            // Beyond the bound, clients wait in the system's queue.
            accepted = listener.accept(), if connections.len() < connections_max => match accepted {
                Ok((stream, peer)) => {
                    let (router, closing) = (router.clone(), closing.subscribe());
                    connections.spawn(connection(stream, peer.ip(), router, app.clone(), closing));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut shutdown, if deadline.is_none() => {
                tracing::info!("draining: no new requests, running ones go on");
                app.set_phase(Phase::Draining);
                deadline = Some(Instant::now() + app.options().grace);
            }
            found = &mut watch, if fault.is_none() => {
                tracing::error!("{found}");
                app.set_phase(Phase::Dead);
                deadline = Some(Instant::now() + app.options().last_words);
                fault = Some(found);
            }
            () = app.idle(), if deadline.is_some() => break,
            () = at(deadline) => {
                tracing::warn!("the time is over for what still runs");
                grace_is_over = true;
                break;
            }
        }
    }
    drop(listener);
    let last_words = app.options().last_words;
    if grace_is_over && fault.is_none() {
        app.set_phase(Phase::Ending);
        let _ = timeout(last_words, app.idle()).await;
    }
    // All is answered, but clients may still be reading: they have what is left of the grace period.
    closing.send_replace(true);
    let now = Instant::now();
    let last = deadline.unwrap_or(now).max(now) + last_words;
    if timeout_at(last, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(clients = connections.len(), "cut while they were reading their answers");
    }
    app.set_phase(Phase::Ending);
    fault.map_or(Ok(()), Err)
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// One client, from its first request to its last.
async fn connection(
    stream: TcpStream,
    peer: IpAddr,
    router: Router,
    app: App,
    mut closing: watch::Receiver<bool>,
) {
    // Each event of a stream leaves at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY refused");
    }
    let liveness = Liveness::default();
    let socket = Socket::new(stream, liveness.clone(), app.options().stall_timeout);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(app.options().read_timeout)
        .max_buf_size(BUFFER_BYTES_MAX);
    let service = service_fn(|request| answer(request, peer, &router, &app, &liveness));
    let mut connection = pin!(http.serve_connection(TokioIo::new(socket), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = until_set(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn until_set(flag: &mut watch::Receiver<bool>) {
    // An error means that `run` has returned: that closes connections too.
    let _ = flag.wait_for(|set| *set).await;
}

fn answer(
    mut request: Request<Incoming>,
    peer: IpAddr,
    router: &Router,
    app: &App,
    liveness: &Liveness,
) -> impl Future<Output = Result<Response<HeldBody<crate::app::OpenRequest>>, Infallible>> + use<> {
    let liveness = liveness.clone();
    liveness.request_started(request.version() == Version::HTTP_11);
    if request.body().is_end_stream() {
        liveness.request_complete();
    }
    request.extensions_mut().insert(liveness.clone());
    request.extensions_mut().insert(Peer(peer));
    let guard = app.open_request();
    let router = router.clone();
    async move {
        // The router is always ready and never fails.
        let Ok(mut response) = TowerToHyperService::new(router).call(request).await;
        if liveness.is_unread() {
            // The rest of the body would stand where the next request is looked for: the connection ends here, and a
            // client that knows does not send another on it.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| HeldBody { body, liveness, _guard: guard }))
    }
}
