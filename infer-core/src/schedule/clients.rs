//! [`Clients`]: the rows that each client was served.
//!
//! The client with the fewest rows is served first. This is the virtual token counter of "Fairness in Serving Large Language
//! Models" (Sheng et al. 2024): a client that returns starts at the least count of the present clients, so nobody saves up
//! rows while absent.

use std::collections::BTreeMap;

/// Counts of rows by client.
#[derive(Debug, Default)]
pub(crate) struct Clients(BTreeMap<u64, Client>);

/// A client with present requests, or with more rows than all clients with such.
#[derive(Debug, Default)]
struct Client {
    requests: usize,
    rows: i64,
}

impl Clients {
    /// Adds a request of a client.
    pub(crate) fn enter(&mut self, client: u64) {
        let least = self.least();
        let client = self.0.entry(client).or_default();
        if client.requests == 0 {
            client.rows = client.rows.max(least.unwrap_or(0));
        }
        client.requests += 1;
    }

    /// Removes a request of a client.
    pub(crate) fn leave(&mut self, client: u64) {
        self.0.get_mut(&client).expect("a present client").requests -= 1;
        let least = self.least();
        // A client with fewer rows starts at the least count when it returns.
        self.0.retain(|_, client| client.requests > 0 || least.is_some_and(|least| client.rows > least));
    }

    /// Adds rows that a client is served. Negative if they are taken back.
    pub(crate) fn charge(&mut self, client: u64, rows: i64) {
        self.0.get_mut(&client).expect("a present client").rows += rows;
    }

    /// Rows that a present client was served, or missed while it was absent.
    pub(crate) fn rows(&self, client: u64) -> i64 {
        self.0[&client].rows
    }

    /// The least count of the clients with requests.
    fn least(&self) -> Option<i64> {
        self.0.values().filter(|client| client.requests > 0).map(|client| client.rows).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_saves_up_rows_while_absent() {
        let mut clients = Clients::default();
        for client in [1, 2, 3] {
            clients.enter(client);
        }
        clients.leave(1);
        clients.charge(2, 70);
        clients.charge(3, 100);
        // Returning and new clients start at the least count of the present ones.
        clients.enter(1);
        clients.enter(4);
        assert_eq!([1, 2, 3, 4].map(|client| clients.rows(client)), [70, 70, 100, 70]);
        // A client with more rows keeps its count. Others are forgotten.
        clients.leave(3);
        clients.leave(4);
        assert_eq!(clients.0.len(), 3);
        clients.enter(3);
        assert_eq!(clients.rows(3), 100);
        for client in [1, 2, 3] {
            clients.leave(client);
        }
        assert!(clients.0.is_empty());
    }
}
