//! Secrets: the master key and what it seals, passwords and their hashes, tokens.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use argon2::password_hash::PasswordHasher;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Names format and purpose, and is authenticated with each sealed text.
const SEALED: &str = "tg1:";

const NONCE: usize = 12;

/// A failure of the cryptographic library or of the system's random numbers.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the cryptographic library failed")]
pub struct CryptoFailed;

/// Seals and opens short secrets (AES-256-GCM-SIV, RFC 8452: a repeated nonce reveals no more
/// than that two secrets are equal).
pub struct MasterKey {
    sealing: RandomizedNonceKey,
    /// Derived, so that neither use tells about the other.
    code: [u8; 32],
    addresses: [u8; 32],
}

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it does not hold 64 hexadecimal digits")]
    Form,
    #[error("others than its owner can read it (mode {0:o})")]
    Mode(u32),
}

impl MasterKey {
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text = read_private(path)?;
        let bytes = unhex(text.trim()).ok_or(KeyError::Form)?;
        let sealing =
            RandomizedNonceKey::new(&AES_256_GCM_SIV, &bytes).map_err(|_| KeyError::Form)?;
        let derived = |purpose: &[u8]| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
            let mut derived = [0u8; 32];
            derived.copy_from_slice(hmac::sign(&key, purpose).as_ref());
            derived
        };
        Ok(MasterKey {
            sealing,
            code: derived(b"tidegate compiled policies"),
            addresses: derived(b"tidegate hashed addresses"),
        })
    }

    /// The key that authenticates compiled policies.
    pub fn code_key(&self) -> &[u8; 32] {
        &self.code
    }

    /// The key that addresses are hashed with in what is handed out.
    pub fn address_key(&self) -> &[u8; 32] {
        &self.addresses
    }

    /// Nonce and sealed text in base64, after the format's name.
    pub fn seal(&self, secret: &str) -> Result<String, CryptoFailed> {
        let mut sealed = secret.as_bytes().to_vec();
        let nonce = self
            .sealing
            .seal_in_place_append_tag(Aad::from(SEALED.as_bytes()), &mut sealed)
            .map_err(|_| CryptoFailed)?;
        let mut all = nonce.as_ref().to_vec();
        all.append(&mut sealed);
        Ok(format!("{SEALED}{}", STANDARD.encode(all)))
    }

    /// `None`: sealed with another key, or damaged.
    pub fn open(&self, sealed: &str) -> Option<String> {
        let mut all = STANDARD.decode(sealed.strip_prefix(SEALED)?).ok()?;
        let (nonce, text) = all.split_at_mut_checked(NONCE)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self
            .sealing
            .open_in_place(nonce, Aad::from(SEALED.as_bytes()), text)
            .ok()?;
        String::from_utf8(plain.to_vec()).ok()
    }
}

/// Reads a file that only its owner may read.
pub fn read_private(path: &Path) -> Result<String, KeyError> {
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Mode(mode));
    }
    Ok(std::fs::read_to_string(path)?)
}

/// Writes a new file that only its owner may read. Never overwrites.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// 256 random bits in hexadecimal: a master key or a token.
pub fn random_hex() -> Result<String, CryptoFailed> {
    let mut bytes = [0u8; 32];
    rand::fill(&mut bytes).map_err(|_| CryptoFailed)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// 24 characters out of 32, 120 bits, without those that look alike.
pub fn random_password() -> Result<String, CryptoFailed> {
    const ALPHABET: &[u8; 32] = b"23456789abcdefghjkmnpqrstuvwxyzA";
    let mut bytes = [0u8; 24];
    rand::fill(&mut bytes).map_err(|_| CryptoFailed)?;
    Ok(bytes
        .iter()
        .map(|b| char::from(ALPHABET[usize::from(b & 31)]))
        .collect())
}

/// Argon2id in PHC form, with the parameters that the listeners expect.
pub fn hash_password(password: &str) -> Result<String, CryptoFailed> {
    let mut salt = [0u8; 16];
    rand::fill(&mut salt).map_err(|_| CryptoFailed)?;
    tidegate_net::submission::password_hasher()
        .hash_password_with_salt(password.as_bytes(), &salt)
        .map(|hash| hash.to_string())
        .map_err(|_| CryptoFailed)
}

/// Hex SHA-256: enough for what has 160 random bits or more.
pub fn digest(text: &str) -> String {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes())
        .as_ref()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0u8; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(dir: &Path) -> MasterKey {
        let path = dir.join(random_hex().unwrap());
        write_private(&path, &random_hex().unwrap()).unwrap();
        MasterKey::read(&path).unwrap()
    }

    #[test]
    fn sealed_secrets_open_with_their_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let (key, other) = (key(dir.path()), key(dir.path()));
        let sealed = key.seal("päss").unwrap();
        assert!(!sealed.contains("päss"));
        assert_eq!(key.open(&sealed).as_deref(), Some("päss"));
        assert_eq!(other.open(&sealed), None);
        assert_ne!(sealed, key.seal("päss").unwrap(), "the nonce is fresh");
        let mut damaged = sealed.into_bytes();
        let last = damaged.len() - 6;
        damaged[last] = if damaged[last] == b'A' { b'B' } else { b'A' };
        assert_eq!(key.open(&String::from_utf8(damaged).unwrap()), None);
        for bad in ["", "tg1:", "tg1:!!", "plain"] {
            assert_eq!(key.open(bad), None, "{bad}");
        }
    }

    #[test]
    fn key_files_are_private_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, &random_hex().unwrap()).unwrap();
        assert!(write_private(&path, "x").is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(MasterKey::read(&path), Err(KeyError::Mode(0o640))));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "abc").unwrap();
        assert!(matches!(MasterKey::read(&path), Err(KeyError::Form)));
    }

    #[test]
    fn passwords_are_hashed_with_argon2id() {
        use argon2::{Argon2, PasswordVerifier};
        let password = random_password().unwrap();
        assert_eq!(password.len(), 24);
        let hash = hash_password(&password).unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        let argon = Argon2::default();
        assert!(
            argon
                .verify_password(password.as_bytes(), hash.as_str())
                .is_ok()
        );
        assert!(argon.verify_password(b"other", hash.as_str()).is_err());
    }
}
