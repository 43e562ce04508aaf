//! Records in segment files, and the references to them.
//!
//! A record is a header of 32 bytes (magic, CRC-32C over all that follows it, epoch of
//! the segment, queue id or 0, length, number of the part) and its data. The epoch
//! tells a record from what an earlier life of a recycled segment left behind.

use std::fs::File;
use std::io;

use bytes::Bytes;
use tidegate_queue::{ContentRef, StoreError, StoreResult};

use super::disk::Disk;

pub(crate) const HEADER: usize = 32;
const MAGIC: [u8; 4] = *b"TGr1";

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub segment: u32,
    pub epoch: u64,
    /// Of the header.
    pub offset: u64,
    /// Of the data.
    pub length: u32,
}

impl Piece {
    /// Bytes that it takes up.
    pub fn span(&self) -> u64 {
        HEADER as u64 + u64::from(self.length)
    }
}

/// `segment.epoch.offset.length`, several joined by commas.
pub(crate) fn to_ref(pieces: &[Piece]) -> ContentRef {
    use std::fmt::Write;
    let mut text = String::with_capacity(pieces.len() * 24);
    for piece in pieces {
        if !text.is_empty() {
            text.push(',');
        }
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{}.{}.{}.{}",
            piece.segment, piece.epoch, piece.offset, piece.length
        );
    }
    ContentRef(text)
}

pub(crate) fn from_ref(text: &str) -> StoreResult<Vec<Piece>> {
    let bad = || StoreError::Damaged(format!("content reference {text:?}"));
    let mut pieces = Vec::with_capacity(1);
    if text.is_empty() {
        return Ok(pieces);
    }
    for part in text.split(',') {
        let mut numbers = part.split('.');
        let mut next = || numbers.next()?.parse::<u64>().ok();
        let (segment, epoch, offset, length) = match (next(), next(), next(), next(), next()) {
            (Some(a), Some(b), Some(c), Some(d), None) => (a, b, c, d),
            _ => return Err(bad()),
        };
        pieces.push(Piece {
            segment: u32::try_from(segment).map_err(|_| bad())?,
            epoch,
            offset,
            length: u32::try_from(length).map_err(|_| bad())?,
        });
    }
    Ok(pieces)
}

/// The header of a record over `data`.
pub(crate) fn header(piece: &Piece, message: i64, part: u32, data: &[u8]) -> [u8; HEADER] {
    let mut header = [0u8; HEADER];
    header[..4].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&piece.epoch.to_le_bytes());
    header[16..24].copy_from_slice(&message.to_le_bytes());
    header[24..28].copy_from_slice(&piece.length.to_le_bytes());
    header[28..32].copy_from_slice(&part.to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&header[8..]), data);
    header[4..8].copy_from_slice(&sum.to_le_bytes());
    header
}

/// Reads and verifies a record: blocking.
///
/// # Errors
/// `InvalidData` if what is there is not the record; else what the disk says.
pub(crate) fn read(disk: &dyn Disk, file: &File, piece: &Piece) -> io::Result<Bytes> {
    let mut buffer = vec![0u8; HEADER + piece.length as usize];
    disk.read(file, &mut buffer, piece.offset)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => bad(piece, "the file ends before it"),
            _ => error,
        })?;
    check(piece, Bytes::from(buffer))
}

fn bad(piece: &Piece, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "content at segment {} offset {}: {what}",
            piece.segment, piece.offset
        ),
    )
}

/// The data of a record read with its header.
pub(crate) fn check(piece: &Piece, record: Bytes) -> io::Result<Bytes> {
    let bad = |what| bad(piece, what);
    let header = &record[..HEADER];
    if header[..4] != MAGIC {
        return Err(bad("no record"));
    }
    if header[8..16] != piece.epoch.to_le_bytes() || header[24..28] != piece.length.to_le_bytes() {
        return Err(bad("another record"));
    }
    if header[4..8] != crc32c::crc32c(&record[8..]).to_le_bytes() {
        return Err(bad("checksum mismatch"));
    }
    Ok(record.slice(HEADER..))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: Piece = Piece {
        segment: 3,
        epoch: 9,
        offset: 4096,
        length: 5,
    };

    #[test]
    fn references_round_trip_and_rubbish_is_refused() {
        let pieces = vec![
            PIECE,
            Piece {
                offset: 70_000,
                ..PIECE
            },
        ];
        assert_eq!(from_ref(&to_ref(&pieces).0).unwrap(), pieces);
        assert_eq!(from_ref("").unwrap(), vec![]);
        for bad in ["x", "1.2.3", "1.2.3.4.5", "1.2.3.99999999999", "1.2.3.4,"] {
            assert!(from_ref(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_of_another_life_or_with_a_flipped_bit_is_refused() {
        let mut record = header(&PIECE, 7, 0, b"hello").to_vec();
        record.extend_from_slice(b"hello");
        let good = Bytes::from(record.clone());
        assert_eq!(check(&PIECE, good.clone()).unwrap(), "hello");
        let other = Piece { epoch: 8, ..PIECE };
        assert!(check(&other, good).is_err());
        for at in 0..record.len() {
            let mut damaged = record.clone();
            damaged[at] ^= 0x10;
            assert!(check(&PIECE, Bytes::from(damaged)).is_err(), "byte {at}");
        }
    }
}
