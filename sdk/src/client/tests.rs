//! What the driver promises its callers, whatever the store does.

use super::*;
use crate::{
    testing,
    wallet::{AccountOptions, SecretWords, StateChange, Wallet},
};
use std::pin::pin;
use tokio::sync::oneshot;

/// A server that cannot be reached.
struct Nowhere;

impl Transport for Nowhere {
    fn connect(&mut self) -> Connecting {
        Box::pin(std::future::pending())
    }
}

/// A store that asks the test how each saving ends.
struct Asking(mpsc::UnboundedSender<oneshot::Sender<Result<(), StoreError>>>);

impl Store for Asking {
    fn save(&mut self, _: StateChange) -> Saving {
        let (decide, decided) = oneshot::channel();
        self.0.send(decide).expect("the test listens");
        Box::pin(async { decided.await.expect("the test decides") })
    }
}

type Savings = mpsc::UnboundedReceiver<oneshot::Sender<Result<(), StoreError>>>;

/// A client that has saved what it began with.
async fn open() -> (Client, Savings) {
    let words = SecretWords::generate().expect("random numbers");
    let federation = testing::federation(4).federation;
    let wallet = Wallet::new(federation, &words, &AccountOptions::default(), None).expect("opens");
    let (asks, mut savings) = mpsc::unbounded_channel();
    let client =
        Client::open(wallet, Nowhere, &Default::default(), Asking(asks)).expect("nothing is damaged");
    let first = savings.recv().await.expect("the client saves");
    first.send(Ok(())).expect("the client waits");
    (client, savings)
}

#[tokio::test]
async fn a_call_is_answered_once_what_it_did_is_saved() {
    let (client, mut savings) = open().await;
    let mut call = pin!(client.next_address());
    let decide = tokio::select! {
        biased;
        _ = &mut call => panic!("answered before it was saved"),
        decide = savings.recv() => decide.expect("the client saves"),
    };
    // The driver waits for the store, so nothing more can come before this.
    decide.send(Ok(())).expect("the client waits");
    call.await.expect("saved");
}

#[tokio::test]
async fn a_call_whose_saving_fails_is_told_so() {
    let (client, mut savings) = open().await;
    let disk_full = StoreError("no space left".to_owned());
    let fail = async {
        let decide = savings.recv().await.expect("the client saves");
        decide.send(Err(disk_full.clone())).expect("the client waits");
    };
    let (answer, ()) = tokio::join!(client.next_address(), fail);
    assert_eq!(answer, Err(ClientError::Store(disk_full)));
}
