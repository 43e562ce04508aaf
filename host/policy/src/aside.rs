//! What is looked at aside, off the way of decisions: a bounded queue that loses what does not fit.

use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

pub(crate) struct Aside<T> {
    sender: mpsc::Sender<T>,
    receiver: Mutex<Option<mpsc::Receiver<T>>>,
}

impl<T> Aside<T> {
    pub fn new(most: usize) -> Self {
        let (sender, receiver) = mpsc::channel(most);
        Aside {
            sender,
            receiver: Mutex::new(Some(receiver)),
        }
    }

    /// The other end, once.
    pub fn receiver(&self) -> Option<mpsc::Receiver<T>> {
        self.receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// A place, before anything is copied for it; `None` where the queue is full.
    pub fn place(&self) -> Option<mpsc::Permit<'_, T>> {
        self.sender.try_reserve().ok()
    }
}
