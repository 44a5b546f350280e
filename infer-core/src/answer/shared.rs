//! [`Shared`]: the batch that an engine and its generations share.

use std::sync::{Mutex, PoisonError};

use async_lock::MutexGuard;

use super::{batch::Batch, state::Answer};

/// The batch that an engine and its generations share.
pub(super) struct Shared {
    batch: async_lock::Mutex<Batch>,
    /// Changes that wait for the next step.
    changes: Mutex<Changes>,
    notice: Mutex<Option<String>>,
}

#[derive(Default)]
struct Changes {
    next_id: u64,
    list: Vec<Change>,
}

enum Change {
    Add { id: u64, answer: Box<Answer> },
    Cancel(u64),
    Forget,
}

impl Shared {
    pub fn new(batch: Batch) -> Shared {
        Shared { batch: async_lock::Mutex::new(batch), changes: Mutex::default(), notice: Mutex::default() }
    }

    /// Starts an answer at the next step. Returns its id.
    pub fn add(&self, answer: Answer) -> u64 {
        let mut changes = locked(&self.changes);
        let id = changes.next_id;
        changes.next_id += 1;
        changes.list.push(Change::Add { id, answer: Box::new(answer) });
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
    pub async fn lock(&self) -> MutexGuard<'_, Batch> {
        let mut batch = self.batch.lock().await;
        for change in std::mem::take(&mut locked(&self.changes).list) {
            match change {
                Change::Add { id, answer } => batch.add(id, *answer),
                Change::Cancel(id) => drop(batch.remove(id)),
                Change::Forget => batch.forget(),
            }
        }
        if let Some(notice) = batch.model_mut().take_notice() {
            *locked(&self.notice) = Some(notice);
        }
        batch
    }

    /// Takes the message for the user about a device fault that was worked around.
    pub fn take_notice(&self) -> Option<String> {
        // After the last step, the batch still has it.
        let own = self.batch.try_lock().and_then(|mut batch| batch.model_mut().take_notice());
        own.or_else(|| locked(&self.notice).take())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
