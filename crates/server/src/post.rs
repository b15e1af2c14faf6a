//! What an engine says, taken over to the thread of connections a step at a time: to wake that thread for every token costs
//! more than the token.

use std::mem::take;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{OwnedPermit, Sender};

pub struct Post<T> {
    /// Each with its place where it goes, so that there are never more than have room there.
    letters: Mutex<Vec<(OwnedPermit<T>, T)>>,
    bell: Notify,
}

/// Why something was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsent {
    Full,
    /// Nobody listens any more.
    Closed,
}

impl<T> Default for Post<T> {
    fn default() -> Post<T> {
        Post { letters: Mutex::default(), bell: Notify::new() }
    }
}

impl<T> Post<T> {
    /// Sends in the order of the calls, once `ring` is called at the latest.
    pub fn send(&self, to: &Sender<T>, what: T) -> Result<(), Unsent> {
        let place = to.clone().try_reserve_owned().map_err(|error| match error {
            TrySendError::Full(_) => Unsent::Full,
            TrySendError::Closed(_) => Unsent::Closed,
        })?;
        self.lock().push((place, what));
        Ok(())
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
            for (place, what) in letters {
                place.send(what);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(OwnedPermit<T>, T)>> {
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
    fn letters_come_in_their_order_and_what_has_no_room_is_not_taken() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let post = Post::default();
        let (wide, mut read) = channel(100);
        let (narrow, mut few) = channel(2);
        for i in 0..100 {
            assert_eq!(post.send(&wide, i), Ok(()));
            assert_eq!(post.send(&narrow, i), if i < 2 { Ok(()) } else { Err(Unsent::Full) });
        }
        let shortly = || timeout(Duration::from_millis(20), post.deliver());
        assert!(runtime.block_on(async { shortly().await }).is_err(), "it never ends of itself");
        assert!(read.try_recv().is_err(), "nobody has rung");
        post.ring();
        assert!(runtime.block_on(async { shortly().await }).is_err());
        assert!((0..100).all(|i| read.try_recv() == Ok(i)));
        assert_eq!((few.try_recv(), few.try_recv(), few.try_recv().ok()), (Ok(0), Ok(1), None));
        // What comes when everything was delivered is rung for again.
        drop(few);
        assert_eq!(post.send(&narrow, 7), Err(Unsent::Closed));
        assert_eq!(post.send(&wide, 8), Ok(()));
        post.ring();
        assert!(runtime.block_on(async { shortly().await }).is_err());
        assert_eq!(read.try_recv(), Ok(8));
    }
}
