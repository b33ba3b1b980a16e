//! What a person chooses: cipher, compression, verification.
//!
//! Promise: each choice has one spelling, read by `FromStr` and shown by `Display`.
//! Called by: `format`, `seal`, `vault`, `cli`. On failure: `FromStr` says what is allowed.

use std::{fmt, str::FromStr};

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),* }
        impl $name {
            /// Every choice, in the order shown to people.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($name::$variant => $text),* })
            }
        }
        impl FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                match s {
                    $($text => Ok($name::$variant),)*
                    _ => Err(format!(concat!("unknown ", $what, " '{}': use one of ", $($text, " "),*), s).trim_end().to_owned()),
                }
            }
        }
    };
}

choice! {
    /// How frames are encrypted; one per vault, for ever.
    SuiteId, "cipher" {
        /// AES-256-GCM: fastest where the processor has AES.
        Aes256Gcm = "aes-256-gcm",
        /// ChaCha20-Poly1305: fastest elsewhere.
        ChaCha20Poly1305 = "chacha20-poly1305",
    }
}

choice! {
    /// How data is compressed; may change at each mount.
    Compression, "compression" {
        /// zstd level 1 while the workers keep up, lz4 when buffers pile up.
        Auto = "auto",
        /// zstd level 1.
        Zstd = "zstd",
        /// lz4.
        Lz4 = "lz4",
        /// Stored as it is.
        None = "none",
    }
}

choice! {
    /// Where verification reads back from.
    Verify, "verification" {
        /// The device (direct I/O, or sync, drop and read).
        Device = "device",
        /// Whatever the operating system gives, perhaps its cache: finds our mistakes, not the disk's.
        Cache = "cache",
        /// Not at all.
        Off = "off",
    }
}

/// The codec of one frame, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Stored as it is.
    Raw = 0,
    /// lz4 block.
    Lz4 = 1,
    /// zstd frame.
    Zstd = 2,
}

impl Codec {
    /// The codec of a stored number; `None` for one this version does not know.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Codec> {
        [Codec::Raw, Codec::Lz4, Codec::Zstd].into_iter().find(|c| *c as u8 == n)
    }
}
