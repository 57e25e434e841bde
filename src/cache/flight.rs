//! Equal steps in flight: one of them runs, and the others wait for its result.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::watch;

use super::{CacheKey, Found};
use crate::sync::Mutex;

type Landing = watch::Receiver<Option<Found>>;

/// The steps of an engine that are in flight, across all of its builds. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<CacheKey, Landing>>>);

/// Held by the task that runs a step with some key. If it is dropped without a landing, one of the waiting
/// tasks takes over.
#[derive(Debug)]
pub(crate) struct Flight {
    key: CacheKey,
    flights: Flights,
    landing: watch::Sender<Option<Found>>,
}

/// The answer to a request for a key.
#[derive(Debug)]
pub(super) enum Entered {
    /// No other task runs this step.
    First(Flight),
    /// Another task runs this step.
    After(Waiting),
}

/// A handle to wait for the end of a flight.
#[derive(Debug)]
pub(super) struct Waiting(Landing);

impl Flights {
    /// Begins a flight, or joins the one in progress.
    pub(super) fn enter(&self, key: CacheKey) -> Entered {
        let mut flights = self.0.lock();
        if let Some(landing) = flights.get(&key) {
            return Entered::After(Waiting(landing.clone()));
        }
        let (sender, receiver) = watch::channel(None);
        flights.insert(key, receiver);
        Entered::First(Flight { key, flights: self.clone(), landing: sender })
    }
}

impl Flight {
    /// Passes the result to all waiting tasks.
    pub(crate) fn land(self, found: Found) {
        self.landing.send_replace(Some(found));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
    }
}

impl Waiting {
    /// Waits for the result. Returns `None` if the flight ended without one.
    pub(super) async fn landed(mut self) -> Option<Found> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|found| found.clone())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const KEY: CacheKey = CacheKey([1; 32]);

    fn first(flights: &Flights) -> Flight {
        match flights.enter(KEY) {
            Entered::First(flight) => flight,
            Entered::After(_) => panic!("somebody is at it"),
        }
    }

    fn after(flights: &Flights) -> Waiting {
        match flights.enter(KEY) {
            Entered::First(_) => panic!("nobody is at it"),
            Entered::After(waiting) => waiting,
        }
    }

    #[test]
    fn those_who_wait_get_the_result_or_the_next_turn() {
        let flights = Flights::default();
        let found = Found {
            snapshot: "hm1:x".into(),
            run: uuid::Uuid::nil(),
            step: "a".into(),
            created_at: 1,
            just_used: true,
        };
        let flight = first(&flights);
        let (one, other) = (after(&flights), after(&flights));
        assert!(matches!(flights.enter(CacheKey([2; 32])), Entered::First(_)), "another key");
        flight.land(found.clone());
        assert_eq!(one.landed().now_or_never(), Some(Some(found.clone())));
        assert_eq!(other.landed().now_or_never(), Some(Some(found)), "however late");

        let flight = first(&flights);
        let waiting = after(&flights);
        drop(flight);
        assert_eq!(waiting.landed().now_or_never(), Some(None));
        first(&flights);
    }

    #[test]
    fn a_flight_that_goes_on_is_waited_for() {
        let flights = Flights::default();
        let flight = first(&flights);
        assert_eq!(after(&flights).landed().now_or_never(), None);
        drop(flight);
    }
}
