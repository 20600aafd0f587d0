//! The two ends of one request's event stream.

use std::task::{Context, Poll};

use crate::request::{End, Event, Request};
use crate::runner::Limits;
use crate::sync::stream::{self, TrySendError};

/// What a request's owner holds. Dropping it cancels the request: its blocks are free again after
/// the step that runs meanwhile.
#[derive(Debug)]
pub struct Events {
    receiver: stream::Receiver<Event>,
}

impl Events {
    /// The next event; `None` after the `End`. Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }

    /// [`Events::recv`] for those who build a stream.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.receiver.poll_recv(context)
    }

    /// [`Events::recv`] for a thread outside any async runtime.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        self.receiver.blocking_recv()
    }

    /// What is there already; `None` says nothing about what may come.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.receiver.try_recv().ok()
    }
}

/// The engine's end. It closes exactly once: by [`Reply::finish`], or by being dropped, which
/// tells the client that the request failed. So whatever kills the engine, nobody waits for ever.
#[derive(Debug)]
pub(crate) struct Reply {
    /// `None` once the end has been sent.
    sender: Option<stream::Sender<Event>>,
}

/// Room for every event that the request can cause, so that the engine never waits for a reader.
pub(crate) fn channel(request: &Request, limits: &Limits) -> (Reply, Events) {
    let answer = request.len_max(limits).saturating_sub(request.prompt.len());
    let scores = if request.prompt_logprobs.is_some() { request.prompt.len() } else { 0 };
    let (sender, receiver) = stream::channel(answer + scores + 2); // and `Started`, and the end
    (Reply { sender: Some(sender) }, Events { receiver })
}

impl Reply {
    /// The client has gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.as_ref().is_none_or(stream::Sender::is_closed)
    }

    pub(crate) fn send(&self, event: Event) {
        if let Some(sender) = &self.sender {
            // Closed: the client left, and the next step retires the sequence.
            let full = matches!(sender.try_send(event), Err(TrySendError::Full(_)));
            assert!(!full, "a request had more events than it can cause");
        }
    }

    pub(crate) fn finish(mut self, end: End) {
        self.send(Event::End(end));
        self.sender = None;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let end = End::Failed("the engine stopped before the answer was complete".into());
            let _ = sender.try_send(Event::End(end)); // no client, nobody to tell
        }
    }
}
