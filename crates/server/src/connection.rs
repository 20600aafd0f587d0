//! A client's socket: cut when the client does not read, and told from one that has left.
//!
//! TCP shows a client that is gone and one that has only finished sending (`nc -N`, a half-closed
//! proxy) alike: as end of file. Only writing tells them apart, for a gone peer answers with a
//! reset. So, while an answer is being made and none of it is sent yet, end of file is answered
//! with an interim `100 Continue`, which clients must skip (RFC 9110, 15.2), and the connection is
//! given up when a reset comes back. Once the answer flows, its own writes do the same.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How often a half-closed socket is asked whether a reset has come; and how long an end of file is
/// kept from HTTP while the request before it is being read.
const RESET_POLL: Duration = Duration::from_millis(50);

/// What the socket must know of the request that it carries. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Liveness(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// A request's head has arrived, and nobody has taken the end of its body.
    reading: AtomicBool,
    /// The request is read whole and its answer is not finished.
    answering: AtomicBool,
    /// Some of the answer is sent, or the client cannot take interim answers.
    no_probe: AtomicBool,
    reader: AtomicWaker,
}

impl Liveness {
    /// A request's head has arrived.
    pub(crate) fn request_started(&self, may_probe: bool) {
        self.0.no_probe.store(!may_probe, Ordering::SeqCst);
        self.0.reading.store(true, Ordering::SeqCst);
    }

    /// From now on, end of file is no error of the request.
    pub(crate) fn request_complete(&self) {
        self.0.reading.store(false, Ordering::SeqCst);
        self.0.answering.store(true, Ordering::SeqCst);
        self.0.reader.wake();
    }

    /// Some of the request's body was not read.
    pub(crate) fn is_unread(&self) -> bool {
        self.0.reading.load(Ordering::SeqCst)
    }

    fn answer_finished(&self) {
        self.0.reading.store(false, Ordering::SeqCst);
        self.0.answering.store(false, Ordering::SeqCst);
        self.0.reader.wake();
    }
}

/// A TCP stream as HTTP sees it.
pub(crate) struct Socket {
    stream: TcpStream,
    liveness: Liveness,
    /// The client will send nothing more.
    ended: bool,
    poll_reset: Pin<Box<Sleep>>,
    stall_timeout: Duration,
    /// Runs while a write waits for the client.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, liveness: Liveness, stall_timeout: Duration) -> Self {
        Self {
            stream,
            liveness,
            ended: false,
            poll_reset: Box::pin(sleep(RESET_POLL)),
            stall_timeout,
            stalled: None,
        }
    }

    /// End of file, an error if the client is gone, or pending while an answer is on its way.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = Arc::clone(&self.liveness.0);
        shared.reader.register(cx.waker());
        if shared.reading.load(Ordering::SeqCst) {
            // The body's last bytes and the end of file may come together. HTTP asks for more before
            // the handler, which runs on the same task, has had its turn: a pause gives it one.
            ready!(self.poll_reset.as_mut().poll(cx));
        }
        if !shared.answering.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        if !shared.no_probe.swap(true, Ordering::SeqCst) {
            // A full send buffer would mean that an answer is under way: no probe is needed then.
            let _ = self.stream.try_write(PROBE);
        }
        loop {
            if let Some(error) = self.stream.take_error()? {
                return Poll::Ready(Err(error));
            }
            ready!(self.poll_reset.as_mut().poll(cx));
            self.poll_reset.set(sleep(RESET_POLL));
        }
    }

    /// Turns a write that waits too long into an error.
    fn watch_stall<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            self.liveness.0.no_probe.store(true, Ordering::SeqCst);
            return written;
        }
        let timeout = self.stall_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            this.ended = true;
            this.poll_reset.set(sleep(RESET_POLL));
        }
        this.poll_ended(cx)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch_stall(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, parts);
        this.watch_stall(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// A response body that holds what must live until it is sent or given up.
pub(crate) struct HeldBody<G> {
    pub(crate) body: axum::body::Body,
    pub(crate) liveness: Liveness,
    pub(crate) _guard: G,
}

impl<G: Unpin> Body for HeldBody<G> {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<G> Drop for HeldBody<G> {
    fn drop(&mut self) {
        self.liveness.answer_finished();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    /// A socket whose client has finished sending.
    async fn half_closed(liveness: &Liveness) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut client).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
        (Socket::new(stream, liveness.clone(), LONG), client)
    }

    #[tokio::test]
    async fn an_end_of_file_waits_for_the_handler_to_take_the_body() {
        let liveness = Liveness::default();
        let (mut socket, _client) = half_closed(&liveness).await;
        liveness.request_started(true);
        assert!(timeout(RESET_POLL / 5, socket.read(&mut [0; 8])).await.is_err());
        liveness.request_complete();
        assert!(timeout(3 * RESET_POLL, socket.read(&mut [0; 8])).await.is_err());
        liveness.answer_finished();
        assert_eq!(timeout(LONG, socket.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn an_end_of_file_is_told_if_the_body_is_cut_or_nothing_was_asked() {
        for started in [true, false] {
            let liveness = Liveness::default();
            let (mut socket, _client) = half_closed(&liveness).await;
            if started {
                liveness.request_started(true);
            }
            assert_eq!(timeout(LONG, socket.read(&mut [0; 8])).await.unwrap().unwrap(), 0, "{started}");
        }
    }
}
