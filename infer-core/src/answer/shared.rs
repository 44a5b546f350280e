//! [`Shared`]: the batch that an engine and its generations share.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

use async_lock::MutexGuard;
use event_listener::{Event, EventListener};

use super::{batch::Batch, outbox::Outbox, state::Answer};

/// The batch that an engine and its generations share.
pub(super) struct Shared {
    batch: async_lock::Mutex<Batch>,
    /// Changes that wait for the next step.
    changes: Mutex<Changes>,
    notice: Mutex<Option<String>>,
    /// Tells waiting generations that the batch is free, and that their outboxes may have pieces.
    released: Event,
}

#[derive(Default)]
struct Changes {
    next_id: u64,
    list: Vec<Change>,
}

enum Change {
    Add { id: u64, answer: Box<Answer>, outbox: Outbox },
    Cancel(u64),
    Forget,
}

impl Shared {
    pub fn new(batch: Batch) -> Shared {
        Shared {
            batch: async_lock::Mutex::new(batch),
            changes: Mutex::default(),
            notice: Mutex::default(),
            released: Event::new(),
        }
    }

    /// Starts an answer at the next step. Returns its id.
    pub fn add(&self, answer: Answer, outbox: Outbox) -> u64 {
        let mut changes = locked(&self.changes);
        let id = changes.next_id;
        changes.next_id += 1;
        changes.list.push(Change::Add { id, answer: Box::new(answer), outbox });
        id
    }

    /// Ends an answer at the next step.
    pub fn cancel(&self, id: u64) {
        locked(&self.changes).list.push(Change::Cancel(id));
    }

    /// Forgets all keys and values at the next step.
    pub fn forget(&self) {
        locked(&self.changes).list.push(Change::Forget);
    }

    /// The batch, with all changes made. Waits while another generation runs a step.
    pub async fn lock(&self) -> Held<'_> {
        self.held(self.batch.lock().await)
    }

    /// The batch, with all changes made; `None` if it is in use.
    pub fn try_lock(&self) -> Option<Held<'_>> {
        self.batch.try_lock().map(|batch| self.held(batch))
    }

    /// A future that resolves when the batch is released the next time.
    pub fn released(&self) -> EventListener {
        self.released.listen()
    }

    fn held<'a>(&'a self, mut batch: MutexGuard<'a, Batch>) -> Held<'a> {
        for change in std::mem::take(&mut locked(&self.changes).list) {
            match change {
                Change::Add { id, answer, outbox } => batch.add(id, *answer, outbox),
                Change::Cancel(id) => drop(batch.remove(id)),
                Change::Forget => batch.forget(),
            }
        }
        Held { batch: Some(batch), shared: self }
    }

    /// Takes the message for the user about a device fault that was worked around.
    pub fn take_notice(&self) -> Option<String> {
        locked(&self.notice).take()
    }
}

/// The batch in use. Its end takes over the batch's notice, and wakes all waiting generations.
pub(super) struct Held<'a> {
    /// `None` only while it is dropped.
    batch: Option<MutexGuard<'a, Batch>>,
    shared: &'a Shared,
}

impl Deref for Held<'_> {
    type Target = Batch;

    fn deref(&self) -> &Batch {
        self.batch.as_ref().expect("held")
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Batch {
        self.batch.as_mut().expect("held")
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(notice) = self.model_mut().take_notice() {
            *locked(&self.shared.notice) = Some(notice);
        }
        self.batch = None;
        self.shared.released.notify(usize::MAX);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
