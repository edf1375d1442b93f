//! The backup of a wallet: one sheet, one file, enough to leave without anybody's help.

use super::RecoveryError;
use crate::{
    FederationId,
    account::AccountDescriptor,
    wallet::{SecretWords, Wallet},
};
use bitcoin::Network;
use std::{fmt, str::FromStr};
use zeroize::Zeroizing;

/// Words, descriptor, network and birthday. As text it is what a user prints or keeps as a file; lines that it does not
/// know are ignored when it is read.
///
/// The words in it spend everything: whoever has the sheet has the money. Without them it shows what the account owns.
///
/// ```
/// # fn example(wallet: &quorate::wallet::Wallet, words: &quorate::wallet::SecretWords) {
/// use quorate::recovery::BackupKit;
/// let kit = BackupKit::new(wallet, Some(words.clone()));
/// let sheet = kit.to_text();
/// assert_eq!(BackupKit::parse(&sheet).expect("reads its own").descriptor, kit.descriptor);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BackupKit {
    /// The network.
    pub network: Network,
    /// The federation that the account was made with, if known. Leaving does not need it.
    pub federation: Option<FederationId>,
    /// Height from which the wallet that wrote it has seen blocks: a hint for whoever searches them. Nothing here does.
    pub birthday: u32,
    /// The account.
    pub descriptor: AccountDescriptor,
    /// The words, unless they are kept elsewhere. A passphrase is on no sheet.
    pub words: Option<SecretWords>,
    /// Whether a passphrase is needed beside the words.
    pub passphrase: bool,
}

const TITLE: &str = "Quorate wallet backup";

impl BackupKit {
    /// The backup of a wallet, with its words or without them; with those it is known whether there is a passphrase.
    pub fn new(wallet: &Wallet, words: Option<SecretWords>) -> Self {
        let federation = wallet.federation();
        Self {
            network: federation.network(),
            federation: Some(federation.id()),
            birthday: wallet.chain().base(),
            descriptor: wallet.descriptor(),
            passphrase: words.as_ref().is_some_and(SecretWords::has_passphrase),
            words,
        }
    }

    /// The sheet as text.
    pub fn to_text(&self) -> Zeroizing<String> {
        let words = match &self.words {
            Some(words) => words.reveal(),
            None => Zeroizing::new("(kept elsewhere)".to_owned()),
        };
        let federation = self.federation.map_or("unknown".to_owned(), |id| id.to_string());
        let (network, birthday, descriptor) = (self.network, self.birthday, &self.descriptor);
        let delay = descriptor.recovery_delay();
        let passphrase = if self.passphrase { "passphrase: needed, and not on this sheet\n" } else { "" };
        Zeroizing::new(format!(
            "{TITLE}\n\n\
             words:      {}\n{passphrase}\
             network:    {network}\n\
             federation: {federation}\n\
             birthday:   {birthday}\n\
             descriptor: {descriptor}\n\n\
             Words and descriptor are enough to move every coin, without Quorate's servers, once {delay} blocks have\n\
             followed the block of that coin: `quorate recover`, or any wallet for output descriptors with Miniscript.\n\
             Whoever reads the words can do it too. Keep this sheet where you keep cash.\n",
            words.as_str(),
        ))
    }

    /// Reads a sheet.
    ///
    /// # Errors
    /// A line is missing or damaged; the error names it.
    pub fn parse(text: &str) -> Result<Self, RecoveryError> {
        let field = |name: &'static str| {
            let lines = text.lines().filter_map(|line| line.split_once(':'));
            lines
                .into_iter()
                .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim())
        };
        let needed = |name: &'static str| {
            field(name).ok_or(RecoveryError::Kit { field: name, reason: "it is missing".to_owned() })
        };
        let passphrase = field("passphrase").is_some();
        let words = match field("words") {
            None | Some("" | "(kept elsewhere)") => None,
            Some(words) => Some(SecretWords::parse(words)?),
        };
        Ok(Self {
            network: read("network", needed("network")?)?,
            federation: match field("federation") {
                None | Some("" | "unknown") => None,
                Some(text) => Some(read("federation", text)?),
            },
            birthday: field("birthday").map_or(Ok(0), |text| read("birthday", text))?,
            descriptor: needed("descriptor")?.parse()?,
            words,
            passphrase,
        })
    }
}

fn read<T: FromStr<Err: fmt::Display>>(field: &'static str, text: &str) -> Result<T, RecoveryError> {
    text.parse().map_err(|error: T::Err| RecoveryError::Kit { field, reason: error.to_string() })
}
