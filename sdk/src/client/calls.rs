//! What an application calls.

use super::{
    ClientError, MaybeSend, Receipt, Store, StoreError, Transport,
    driver::{Command, Driver},
    error::ended_as,
    runtime::{Instant, spawn},
};
use crate::{
    session::{Event, PaymentState, RefreshQuote, Session},
    wallet::{Balance, PaymentRequest, Quote, SavedState, StateError, Wallet, WalletError},
};
use bitcoin::{Address, FeeRate, OutPoint, Txid};
use futures_util::{Stream, stream};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

/// Events that a slow reader may lag behind before it is told that it missed some.
const EVENTS_MAX: usize = 4_096;
/// Calls under way from the application.
const COMMANDS_MAX: usize = 64;

/// A running client. Dropping the last clone ends it.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    events: broadcast::Sender<Event>,
    failed: Arc<OnceLock<StoreError>>,
    stop: Arc<Notify>,
    /// Closed when the driver has ended.
    ended: watch::Receiver<()>,
}

impl Client {
    /// Starts a client in the current tokio runtime.
    pub fn start(wallet: Wallet, transport: impl Transport) -> Self {
        Self::run(Session::new(wallet, Box::new(rand_core::OsRng)), transport, None)
    }

    /// Starts a client that goes on from a saved state (which may be empty) and saves what it does.
    ///
    /// # Errors
    /// The state is damaged or another wallet's.
    pub fn open(
        wallet: Wallet,
        transport: impl Transport,
        state: &SavedState,
        store: impl Store,
    ) -> Result<Self, StateError> {
        let session = Session::restore(wallet, Box::new(rand_core::OsRng), state)?;
        Ok(Self::run(session, transport, Some(Box::new(store))))
    }

    fn run(session: Session, transport: impl Transport, store: Option<Box<dyn Store>>) -> Self {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let failed = Arc::new(OnceLock::new());
        let stop = Arc::new(Notify::new());
        let (alive, ended) = watch::channel(());
        let driver = Driver {
            session,
            transport: Box::new(transport),
            connection: None,
            connecting: None,
            store,
            failed: failed.clone(),
            stop: stop.clone(),
            _alive: alive,
            events: events.clone(),
            started: Instant::now(),
        };
        spawn(driver.run(receiver));
        Self { commands, events, failed, stop, ended }
    }

    /// Everything that happens from now on. A reader that is too slow gets [`Event::Lagged`] instead of what it missed.
    pub fn events(&self) -> impl Stream<Item = Event> + MaybeSend + Unpin + use<> {
        let state = (self.events.subscribe(), self.ended.clone());
        Box::pin(stream::unfold(state, |(mut receiver, ended)| async move {
            match next_event(&mut receiver, &ended).await {
                Ok(event) => Some((event, (receiver, ended))),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    Some((Event::Lagged { missed }, (receiver, ended)))
                }
                Err(broadcast::error::RecvError::Closed) => None,
            }
        }))
    }

    /// Ends the client, even if others have a clone of it, and waits until nothing of it runs: calls under way give
    /// [`ClientError::Ended`], and what was to be saved is saved. Payments go on when the wallet is opened again.
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client) {
    /// client.close().await;
    /// # }
    /// ```
    pub async fn close(&self) {
        self.stop.notify_one();
        gone(self.ended.clone()).await;
    }

    /// Waits until the account is certified and payments can be made.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn ready(&self) -> Result<(), ClientError> {
        self.wait(|session| session.wallet().certificate().map(|_| ())).await
    }

    /// Waits until `condition` gives something, looking after each event.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn wait<T: Send + 'static>(
        &self,
        condition: impl Fn(&Session) -> Option<T> + Send + Sync + Clone + 'static,
    ) -> Result<T, ClientError> {
        let mut events = self.events.subscribe();
        loop {
            let check = condition.clone();
            if let Some(value) = self.call(move |session, _| check(session)).await? {
                return Ok(value);
            }
            if let Err(broadcast::error::RecvError::Closed) = next_event(&mut events, &self.ended).await {
                return Err(self.ended());
            }
        }
    }

    /// Looks at the session, for instance at its wallet.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Session) -> T + Send + 'static,
    ) -> Result<T, ClientError> {
        self.call(move |session, _| look(session)).await
    }

    /// What the wallet has.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn balance(&self) -> Result<Balance, ClientError> {
        self.inspect(|session| session.wallet().balance()).await
    }

    /// Gives out the next receive address.
    ///
    /// # Errors
    /// All addresses have been given out, or the client has ended.
    pub async fn next_address(&self) -> Result<Address, ClientError> {
        Ok(self.call(|session, _| session.next_address()).await??)
    }

    /// An address to show to anyone: the same until somebody has paid to it
    /// ([`crate::wallet::Wallet::unused_address`]).
    ///
    /// # Errors
    /// All addresses have been given out, or the client has ended.
    pub async fn unused_address(&self) -> Result<Address, ClientError> {
        Ok(self.call(|session, _| session.unused_address()).await??)
    }

    /// Submits a payment; its progress comes as [`Event::Payment`]. When this returns, the payment is saved: it goes
    /// on when the wallet is opened again, and [`Client::outcome`] then waits for its end.
    ///
    /// # Errors
    /// The wallet refused, or the client has ended.
    pub async fn send(&self, request: PaymentRequest) -> Result<Txid, ClientError> {
        Ok(self.call(move |session, now| session.send(now, &request)).await??)
    }

    /// Says that the network may be back or the device awake, so that the client connects now and not when its timer
    /// runs out.
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client) -> Result<(), quorate::client::ClientError> {
    /// client.wake().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// The client has ended.
    pub async fn wake(&self) -> Result<(), ClientError> {
        self.call(|session, now| session.wake(now)).await
    }

    /// Builds a payment as a PSBT (BIP174, BIP371), without reserving or sending anything.
    ///
    /// # Errors
    /// The wallet refused, or the client has ended.
    pub async fn create_psbt(&self, request: PaymentRequest) -> Result<bitcoin::Psbt, ClientError> {
        Ok(self.call(move |session, _| session.create_psbt(&request)).await??)
    }

    /// Says what a payment would be, without reserving or sending anything. Show it to who pays, and pay exactly that.
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client, request: quorate::wallet::PaymentRequest) -> Result<(),
    /// # quorate::client::ClientError> {
    /// let quote = client.quote(request).await?;
    /// println!("{} and a fee of {}", quote.amount, quote.fee);
    /// client.pay_psbt(quote.psbt).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The wallet refused, or the client has ended.
    pub async fn quote(&self, request: PaymentRequest) -> Result<Quote, ClientError> {
        Ok(self.call(move |session, _| session.quote(&request)).await??)
    }

    /// As [`Client::pay`], but once for each key, however often it is called and also after a restart: who does not
    /// know whether a payment was made asks for it again with the same key, and waits for the same payment
    /// ([`Session::send_once`]).
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client, request: quorate::wallet::PaymentRequest) -> Result<(),
    /// # quorate::client::ClientError> {
    /// let receipt = client.pay_once("invoice 17", request.clone()).await?;
    /// assert_eq!(client.pay_once("invoice 17", request).await?.txid, receipt.txid);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::pay`] and [`Client::outcome`]; also how the payment of that key ended when it was made, such as
    /// that the federation refused it: take another key to pay after all.
    pub async fn pay_once(&self, key: &str, request: PaymentRequest) -> Result<Receipt, ClientError> {
        let txid = self.send_once(key, request).await?;
        self.outcome(txid).await.map_err(ClientError::for_good)
    }

    /// As [`Client::pay_psbt`], but once for each key.
    ///
    /// # Errors
    /// As [`Client::pay_once`].
    pub async fn pay_psbt_once(&self, key: &str, psbt: bitcoin::Psbt) -> Result<Receipt, ClientError> {
        let txid = self.send_psbt_once(key, psbt).await?;
        self.outcome(txid).await.map_err(ClientError::for_good)
    }

    /// As [`Client::send_psbt`], but once for each key.
    ///
    /// # Errors
    /// As [`Session::send_psbt_once`], or the client has ended.
    pub async fn send_psbt_once(&self, key: &str, psbt: bitcoin::Psbt) -> Result<Txid, ClientError> {
        let key = key.to_owned();
        Ok(self.call(move |session, now| session.send_psbt_once(now, &key, psbt)).await??)
    }

    /// As [`Client::send`], but once for each key.
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client, request: quorate::wallet::PaymentRequest) -> Result<(),
    /// # quorate::client::ClientError> {
    /// let txid = client.send_once("invoice 17", request).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Session::send_once`], or the client has ended.
    pub async fn send_once(&self, key: &str, request: PaymentRequest) -> Result<Txid, ClientError> {
        let key = key.to_owned();
        Ok(self.call(move |session, now| session.send_once(now, &key, &request)).await??)
    }

    /// Leaves a coin out of payments until [`Client::unfreeze`]; it is kept with the wallet.
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client, coin: bitcoin::OutPoint) -> Result<(),
    /// # quorate::client::ClientError> {
    /// client.freeze(coin).await?;
    /// client.unfreeze(coin).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// It is no unspent coin of this wallet, or the client has ended.
    pub async fn freeze(&self, outpoint: OutPoint) -> Result<(), ClientError> {
        Ok(self.call(move |session, _| session.freeze(outpoint)).await??)
    }

    /// Lets payments spend a coin again.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn unfreeze(&self, outpoint: OutPoint) -> Result<(), ClientError> {
        self.call(move |session, _| session.unfreeze(outpoint)).await
    }

    /// As [`Client::pay_psbt`], without the waiting: when this returns, the payment is saved, and
    /// [`Client::outcome`] waits for its end.
    ///
    /// # Errors
    /// The wallet refused, or the client has ended.
    pub async fn send_psbt(&self, psbt: bitcoin::Psbt) -> Result<Txid, ClientError> {
        Ok(self.call(move |session, now| session.send_psbt(now, psbt)).await??)
    }

    /// Authorises and submits a PSBT of this account, and waits until it is final. One that is under way or final is
    /// not paid again.
    ///
    /// # Errors
    /// The wallet or the federation refused, or the client has ended.
    pub async fn pay_psbt(&self, psbt: bitcoin::Psbt) -> Result<Receipt, ClientError> {
        let txid = self.send_psbt(psbt).await?;
        self.outcome(txid).await
    }

    /// Moves old coins home in one transaction and waits until it is final; `None` if no coin is old
    /// ([`crate::session::Session::refresh`]). Call it again until then.
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client) -> Result<(), quorate::client::ClientError> {
    /// if let Some(quote) = client.refresh_quote(None).await? {
    ///     println!("{} for {} coins", quote.fee, quote.coins);
    ///     client.refresh(None).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The wallet or the federation refused, or the client has ended.
    pub async fn refresh(&self, rate: Option<FeeRate>) -> Result<Option<Receipt>, ClientError> {
        let events = self.events.subscribe();
        match self.call(move |session, now| session.refresh(now, rate)).await?? {
            Some(txid) => self.follow(events, txid).await.map(Some),
            None => Ok(None),
        }
    }

    /// Lifts an enforced transaction that waits for its block, one that this wallet paid or was paid by, and waits
    /// until what pays for it is final ([`crate::wallet::Wallet::create_bump`]).
    ///
    /// ```no_run
    /// # use quorate::client::{Client, ClientError};
    /// # async fn run(client: Client, txid: bitcoin::Txid) -> Result<(), ClientError> {
    /// let rate = bitcoin::FeeRate::from_sat_per_vb_u32(30);
    /// println!("lifting it costs {}", client.bump_quote(txid, rate).await?);
    /// client.bump(txid, rate).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The wallet or the federation refused, or the client has ended.
    pub async fn bump(&self, txid: Txid, rate: FeeRate) -> Result<Receipt, ClientError> {
        let events = self.events.subscribe();
        let child = self.call(move |session, now| session.bump(now, txid, rate)).await??;
        self.follow(events, child).await
    }

    /// What [`Client::bump`] would cost.
    ///
    /// # Errors
    /// The wallet refused, or the client has ended.
    pub async fn bump_quote(&self, txid: Txid, rate: FeeRate) -> Result<bitcoin::Amount, ClientError> {
        Ok(self.call(move |session, _| session.bump_quote(txid, rate)).await??)
    }

    /// What [`Client::refresh`] would do next and cost; `None` if no coin is old.
    ///
    /// # Errors
    /// The wallet refused, or the client has ended.
    pub async fn refresh_quote(&self, rate: Option<FeeRate>) -> Result<Option<RefreshQuote>, ClientError> {
        Ok(self.call(move |session, _| session.refresh_quote(rate)).await??)
    }

    /// What making one coin of many small ones would be, at this fee rate or the server's estimate; `None` if there are
    /// not two ([`Wallet::create_consolidation`](crate::wallet::Wallet::create_consolidation)).
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client) -> Result<(), quorate::client::ClientError> {
    /// if let Some(quote) = client.consolidation_quote(None).await? {
    ///     println!("{} for {} coins", quote.fee, quote.coins.len());
    ///     client.pay_psbt(quote.psbt).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The wallet refused, or the client has ended.
    pub async fn consolidation_quote(&self, rate: Option<FeeRate>) -> Result<Option<Quote>, ClientError> {
        Ok(self.call(move |session, _| session.consolidation_quote(rate)).await??)
    }

    /// Lets the client move coins home by itself when they grow old, at most at this fee rate; `None` lets it not
    /// ([`crate::session::Session::set_auto_refresh`]).
    ///
    /// # Errors
    /// The wallet refused, or the client has ended.
    pub async fn set_auto_refresh(&self, rate_max: Option<FeeRate>) -> Result<(), ClientError> {
        Ok(self.call(move |session, _| session.set_auto_refresh(rate_max)).await??)
    }

    /// Submits a payment and waits until it is final by a proof that this wallet verified.
    ///
    /// # Errors
    /// The wallet or the federation refused, or the client has ended.
    pub async fn pay(&self, request: PaymentRequest) -> Result<Receipt, ClientError> {
        let events = self.events.subscribe();
        let txid = self.send(request).await?;
        self.follow(events, txid).await
    }

    /// Waits until a payment that was submitted is final, in this run or in one before.
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client, request: quorate::wallet::PaymentRequest) -> Result<(),
    /// quorate::client::ClientError> { let txid = client.send(request).await?;
    /// let receipt = client.outcome(txid).await?;
    /// assert_eq!(receipt.txid, txid);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// This wallet knows no such payment, the federation refused it, or the client has ended.
    pub async fn outcome(&self, txid: Txid) -> Result<Receipt, ClientError> {
        let events = self.events.subscribe();
        let state = self.state_of(txid).await?.ok_or(WalletError::UnknownPayment)?;
        match ended_as(txid, state) {
            Some(result) => result,
            None => self.follow(events, txid).await,
        }
    }

    async fn state_of(&self, txid: Txid) -> Result<Option<PaymentState>, ClientError> {
        self.inspect(move |session| session.payment(txid)).await
    }

    /// Asks the federation to stop a payment that is not final. A waiting [`Client::pay`] ends with
    /// [`ClientError::Failed`] or [`ClientError::Rejected`] and the coins are free again, or it succeeds because it
    /// was too late.
    ///
    /// ```no_run
    /// # async fn run(client: quorate::client::Client, txid: bitcoin::Txid) -> Result<(),
    /// quorate::client::ClientError> { client.cancel(txid).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// No such payment of this account is under way, or the client has ended.
    pub async fn cancel(&self, txid: Txid) -> Result<(), ClientError> {
        Ok(self.call(move |session, now| session.cancel(now, txid)).await??)
    }

    /// Submits a signed transaction of coins in sole custody and waits for its attested finality.
    ///
    /// A refusal is the word of one server. The transaction is signed and may become final or confirmed all the same;
    /// to be sure that it does not, spend one of its coins otherwise.
    ///
    /// # Errors
    /// The federation refused, or the client has ended.
    pub async fn attest(&self, transaction: bitcoin::Transaction) -> Result<Receipt, ClientError> {
        let events = self.events.subscribe();
        let txid = self.call(move |session, now| session.submit_signed(now, transaction)).await?;
        self.follow(events, txid).await
    }

    async fn call<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Session, Duration) -> T + Send + 'static,
    ) -> Result<T, ClientError> {
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |session, now| {
            let result = run(session, now);
            Box::new(move || {
                // The caller may have stopped waiting.
                let _gone = reply.send(result);
            })
        });
        self.commands.send(command).await.map_err(|_| self.ended())?;
        answer.await.map_err(|_| self.ended())
    }

    async fn follow(
        &self,
        mut events: broadcast::Receiver<Event>,
        txid: Txid,
    ) -> Result<Receipt, ClientError> {
        loop {
            let state = match next_event(&mut events, &self.ended).await {
                Ok(Event::Payment { txid: other, state }) if other == txid => Some(state),
                Ok(_) => None,
                // Its end may have been among what was missed.
                Err(broadcast::error::RecvError::Lagged(_)) => self.state_of(txid).await?,
                Err(broadcast::error::RecvError::Closed) => return Err(self.ended()),
            };
            if let Some(result) = state.and_then(|state| ended_as(txid, state)) {
                return result;
            }
        }
    }

    fn ended(&self) -> ClientError {
        self.failed.get().map_or(ClientError::Ended, |error| error.clone().into())
    }
}

/// The next event, or that there will be none.
async fn next_event(
    events: &mut broadcast::Receiver<Event>,
    ended: &watch::Receiver<()>,
) -> Result<Event, broadcast::error::RecvError> {
    tokio::select! {
        biased;
        event = events.recv() => event,
        () = gone(ended.clone()) => Err(broadcast::error::RecvError::Closed),
    }
}

/// Waits until the driver has ended.
async fn gone(mut ended: watch::Receiver<()>) {
    while ended.changed().await.is_ok() {}
}
