//! The header block of a message, read without a MIME parser: bounded, never recursive.

use crate::Timestamp;

/// The fields of a header block, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderBlock {
    fields: Vec<Field>,
}

/// One field: its name as written and its value unfolded, without the final line end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub value: String,
}

impl HeaderBlock {
    /// Reads the bytes up to and including the empty line (or all of them).
    pub fn parse(_bytes: &[u8]) -> Self {
        HeaderBlock::default()
    }

    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The first field of that name, compared without case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|f| f.name.eq_ignore_ascii_case(name))
            .map(|f| f.value.as_str())
    }

    /// Number of Received fields (loop detection, RFC 5321 s. 6.3).
    pub fn hops(&self) -> usize {
        self.fields
            .iter()
            .filter(|f| f.name.eq_ignore_ascii_case("received"))
            .count()
    }

    /// Mail of a list, bulk or automatic mail: List-*, Precedence bulk/list/junk,
    /// Auto-Submitted other than `no`.
    pub fn is_automatic(&self) -> bool {
        false
    }

    /// Header fields that call a message bulk: List-* or Precedence bulk.
    pub fn is_bulk(&self) -> bool {
        false
    }
}

/// The trace field that an accepting server adds (RFC 5321 s. 4.4).
pub struct Received<'a> {
    pub helo: &'a str,
    pub peer: std::net::IpAddr,
    /// `ESMTPSA` and its kin (RFC 3848), `UTF8SMTPSA` (RFC 6531).
    pub protocol: &'a str,
    pub by: &'a str,
    pub id: crate::MessageId,
    pub at: Timestamp,
    /// `TLSv1.3 ...`, as a comment.
    pub tls: Option<&'a str>,
}
