//! `engine::sync` on shuttle's primitives: each lock and each atomic is a place where another thread may go on.
//!
//! The channels keep the contracts of std's and tokio's that the engine relies on: what was sent before the
//! receiver went is received or dropped with it, what is sent after comes back, and a receiver gets all that
//! was sent before it hears that the senders are gone.

pub(crate) use shuttle::sync::atomic;

use std::collections::VecDeque;
use std::sync::Arc;

use shuttle::sync::{Condvar, Mutex, MutexGuard};

struct Channel<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
}

struct State<T> {
    messages: VecDeque<T>,
    n_senders: usize,
    has_receiver: bool,
}

impl<T> Channel<T> {
    fn new(capacity: usize) -> Arc<Self> {
        let state = State { messages: VecDeque::new(), n_senders: 1, has_receiver: true };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), capacity })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap()
    }

    fn add_sender(&self) {
        self.state().n_senders += 1;
    }

    fn remove_sender(&self) {
        self.state().n_senders -= 1;
        self.changed.notify_all();
    }

    /// Gives the message back where nobody will receive it: with true, since there is no room.
    fn send(&self, message: T) -> Result<(), (T, bool)> {
        let mut state = self.state();
        if !state.has_receiver {
            return Err((message, false));
        }
        if state.messages.len() == self.capacity {
            return Err((message, true));
        }
        state.messages.push_back(message);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// `Err(true)`: all senders are gone.
    fn try_receive(&self) -> Result<T, bool> {
        let mut state = self.state();
        state.messages.pop_front().ok_or(state.n_senders == 0)
    }

    fn receive(&self) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(message) = state.messages.pop_front() {
                return Some(message);
            }
            if state.n_senders == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap();
        }
    }

    fn remove_receiver(&self) {
        let mut state = self.state();
        state.has_receiver = false;
        let left = std::mem::take(&mut state.messages);
        drop(state);
        drop(left);
    }
}

macro_rules! ends {
    () => {
        pub(crate) struct Sender<T>(Arc<Channel<T>>);
        pub(crate) struct Receiver<T>(Arc<Channel<T>>);

        impl<T> Drop for Sender<T> {
            fn drop(&mut self) {
                self.0.remove_sender();
            }
        }

        impl<T> Drop for Receiver<T> {
            fn drop(&mut self) {
                self.0.remove_receiver();
            }
        }

        impl<T> std::fmt::Debug for Sender<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("Sender")
            }
        }

        impl<T> std::fmt::Debug for Receiver<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("Receiver")
            }
        }
    };
}

/// As `std::sync::mpsc`.
pub(crate) mod mpsc {
    use std::sync::mpsc::{RecvError, SendError};

    pub(crate) use std::sync::mpsc::TryRecvError;

    use super::{Arc, Channel};

    ends!();

    pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let channel = Channel::new(usize::MAX);
        (Sender(channel.clone()), Receiver(channel))
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            self.0.add_sender();
            Self(self.0.clone())
        }
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
            self.0.send(message).map_err(|(message, _)| SendError(message))
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn recv(&self) -> Result<T, RecvError> {
            self.0.receive().ok_or(RecvError)
        }

        pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
            let error = |gone| if gone { TryRecvError::Disconnected } else { TryRecvError::Empty };
            self.0.try_receive().map_err(error)
        }
    }
}

/// As `tokio::sync::mpsc`, for threads.
pub(crate) mod stream {
    use std::task::{Context, Poll};

    pub(crate) use tokio::sync::mpsc::error::TrySendError;

    use super::{Arc, Channel};

    ends!();

    pub(crate) fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let channel = Channel::new(capacity);
        (Sender(channel.clone()), Receiver(channel))
    }

    impl<T> Sender<T> {
        pub(crate) fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
            self.0.send(message).map_err(|(message, full)| {
                if full { TrySendError::Full(message) } else { TrySendError::Closed(message) }
            })
        }

        pub(crate) fn is_closed(&self) -> bool {
            !self.0.state().has_receiver
        }
    }

    impl<T> Receiver<T> {
        pub(crate) async fn recv(&mut self) -> Option<T> {
            self.0.receive()
        }

        pub(crate) fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<Option<T>> {
            Poll::Ready(self.0.receive())
        }

        pub(crate) fn blocking_recv(&mut self) -> Option<T> {
            self.0.receive()
        }

        pub(crate) fn try_recv(&mut self) -> Result<T, bool> {
            self.0.try_receive()
        }
    }
}
