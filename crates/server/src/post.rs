//! What an engine says, taken over to the thread of connections a step at a time: to wake that thread for every token costs
//! more than the token.

use std::mem::take;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

pub struct Post<T> {
    letters: Mutex<Vec<Letter<T>>>,
    bell: Notify,
}

struct Letter<T> {
    to: Sender<T>,
    what: T,
    is_full: Arc<AtomicBool>,
}

impl<T> Default for Post<T> {
    fn default() -> Post<T> {
        Post { letters: Mutex::default(), bell: Notify::new() }
    }
}

impl<T> Post<T> {
    /// Sends in the order of the calls, but not before `ring`; `is_full` becomes true if there is no room where it goes.
    pub fn send(&self, to: &Sender<T>, what: T, is_full: &Arc<AtomicBool>) {
        let letter = Letter { to: to.clone(), what, is_full: Arc::clone(is_full) };
        self.lock().push(letter);
    }

    /// Has everything delivered that was sent.
    pub fn ring(&self) {
        if !self.lock().is_empty() {
            self.bell.notify_one();
        }
    }

    /// Takes letters to where they go, as long as it is let.
    pub async fn deliver(&self) {
        loop {
            self.bell.notified().await;
            let letters = take(&mut *self.lock());
            for Letter { to, what, is_full } in letters {
                if matches!(to.try_send(what), Err(TrySendError::Full(_))) {
                    is_full.store(true, Ordering::Release);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Letter<T>>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc::channel;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn letters_come_in_their_order_and_what_has_no_room_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let post = Post::default();
        let (wide, mut read) = channel(100);
        let (narrow, mut few) = channel(2);
        let (fits, is_full) = (Arc::default(), Arc::default());
        for i in 0..100 {
            post.send(&wide, i, &fits);
            post.send(&narrow, i, &is_full);
        }
        post.ring();
        let shortly = || timeout(Duration::from_millis(20), post.deliver());
        assert!(runtime.block_on(async { shortly().await }).is_err(), "it never ends of itself");
        assert_eq!((fits.load(Ordering::Acquire), is_full.load(Ordering::Acquire)), (false, true));
        assert!((0..100).all(|i| read.try_recv() == Ok(i)));
        assert_eq!((few.try_recv(), few.try_recv(), few.try_recv().ok()), (Ok(0), Ok(1), None));
        // What comes when everything was delivered rings again; who does not listen any more is no matter.
        drop(few);
        post.send(&narrow, 7, &fits);
        post.send(&wide, 8, &fits);
        post.ring();
        assert!(runtime.block_on(async { shortly().await }).is_err());
        assert_eq!((read.try_recv(), fits.load(Ordering::Acquire)), (Ok(8), false));
    }
}
