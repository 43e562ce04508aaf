//! The content of a message as it arrives by DATA or BDAT: finds its end, takes stuffed
//! dots out, and watches over line ends, line lengths, the header block and hops.
//!
//! Pieces are handed on as slices of the input buffer, without a copy. Only bytes that the
//! meaning of which depends on what follows (a dot at the start of a line) stay in the
//! buffer, at most two of them.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr3;

/// Which part of the message a piece belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The header block; its last piece ends with the empty line.
    Header,
    Body,
}

/// What is wrong with a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A CR or LF by itself: where this message ends is a matter of opinion.
    BareLineEnd,
    Nul,
    LongLine,
    TooBig,
    LongHeader,
    Hops,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// All that could be handled has been.
    Need,
    Piece(Part, Bytes),
    /// CRLF.CRLF was read (never for BDAT).
    End,
    /// Reported once a fault; `BareLineEnd` each time.
    Fault(Fault),
}

/// The limits of a content; see [`crate::Config`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub size: u64,
    pub header: usize,
    pub hops: usize,
    pub line: usize,
    pub repair: bool,
}

#[derive(Debug)]
pub(crate) struct Decoder {
    limits: Limits,
    /// DATA: dots are unstuffed and a lone one is the end.
    dots: bool,
    line_start: bool,
    /// The line start follows a true CRLF, or is that of the message.
    after_crlf: bool,
    /// The last byte taken was a CR.
    pending_cr: bool,
    line_len: usize,
    in_header: bool,
    header_len: usize,
    /// How many bytes of "received" the line has matched; `MISMATCH` if it is another field.
    matched: u8,
    hops: usize,
    size: u64,
    eight_bit: bool,
    /// Kinds of fault already reported.
    faults: u8,
}

const RECEIVED: &[u8; 8] = b"received";
const MISMATCH: u8 = u8::MAX;

impl Decoder {
    pub fn new(limits: Limits, dots: bool) -> Self {
        Decoder {
            limits,
            dots,
            line_start: true,
            after_crlf: true,
            pending_cr: false,
            line_len: 0,
            in_header: true,
            header_len: 0,
            matched: 0,
            hops: 0,
            size: 0,
            eight_bit: false,
            faults: 0,
        }
    }

    /// Bytes of content so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn eight_bit(&self) -> bool {
        self.eight_bit
    }

    /// Ends a content sent by BDAT. Where its last line lacks its end, that is the piece
    /// returned; call again until there is none.
    pub fn finish(&mut self) -> Result<Option<(Part, Bytes)>, Fault> {
        let end: &'static [u8] = match (self.pending_cr, self.line_start) {
            (true, _) if !self.limits.repair => return Err(Fault::BareLineEnd),
            (true, _) => b"\n",
            (false, false) => b"\r\n",
            (false, true) => return Ok(None),
        };
        let part = self.part();
        self.pending_cr = false;
        self.count(end, part);
        self.end_line(true);
        Ok(Some((part, Bytes::from_static(end))))
    }

    /// Takes the next piece from the first `limit` bytes of the buffer.
    pub fn step(&mut self, buf: &mut BytesMut, limit: usize) -> Step {
        let limit = limit.min(buf.len());
        let part = self.part();
        let data = &buf[..limit];
        let mut pos = 0;
        let mut fault = None;
        while pos < limit && fault.is_none() {
            if self.pending_cr {
                self.pending_cr = false;
                if data[pos] == b'\n' {
                    pos += 1;
                    if self.end_line(true) {
                        break;
                    }
                } else if self.limits.repair {
                    let cut = self.cut(buf, pos, part);
                    return self.repaired(cut, part, b"\n");
                } else {
                    fault = Some(Fault::BareLineEnd);
                }
                continue;
            }
            if self.line_start && self.dots && data[pos] == b'.' {
                match Dot::at(&data[pos..], self.after_crlf) {
                    Dot::Unknown => break,
                    Dot::End => {
                        if pos > 0 {
                            break;
                        }
                        buf.advance(3);
                        return Step::End;
                    }
                    Dot::Text => self.line_start = false,
                    Dot::Stuffed => {
                        let cut = self.cut(buf, pos, part);
                        buf.advance(1);
                        self.line_start = false;
                        return match cut {
                            Some(piece) => Step::Piece(part, piece),
                            None => self.step(buf, limit - pos - 1),
                        };
                    }
                }
            }
            match memchr3(b'\r', b'\n', 0, &data[pos..]) {
                None => {
                    fault = self.text(&data[pos..]);
                    pos = limit;
                }
                Some(n) => {
                    fault = self.text(&data[pos..pos + n]);
                    pos += n;
                    match data[pos] {
                        b'\r' => {
                            self.pending_cr = true;
                            pos += 1;
                        }
                        b'\n' if self.limits.repair => {
                            let cut = self.cut(buf, pos, part);
                            buf.advance(1);
                            return self.repaired(cut, part, b"\r\n");
                        }
                        b'\n' => fault = Some(Fault::BareLineEnd),
                        _ => {
                            self.line_start = false;
                            self.line_len += 1;
                            pos += 1;
                            // Noted also beside another fault: the reply must not depend on
                            // whether both were found in one step.
                            let nul = self.once(Fault::Nul);
                            fault = fault.or(nul);
                        }
                    }
                }
            }
        }
        if fault == Some(Fault::BareLineEnd) {
            return Step::Fault(Fault::BareLineEnd);
        }
        let cut = self.cut(buf, pos, part);
        // A content with a fault is thrown away, so the piece may be dropped here.
        if let Some(fault) = fault.or_else(|| self.over()) {
            return Step::Fault(fault);
        }
        match cut {
            Some(piece) => Step::Piece(part, piece),
            None => Step::Need,
        }
    }

    fn part(&self) -> Part {
        if self.in_header {
            Part::Header
        } else {
            Part::Body
        }
    }

    /// Takes the first `len` bytes out of the buffer and counts them.
    fn cut(&mut self, buf: &mut BytesMut, len: usize, part: Part) -> Option<Bytes> {
        if len == 0 {
            return None;
        }
        let piece = buf.split_to(len).freeze();
        self.count(&piece, part);
        Some(piece)
    }

    fn count(&mut self, piece: &[u8], part: Part) {
        self.size += piece.len() as u64;
        if part == Part::Header {
            self.header_len += piece.len();
        }
        self.eight_bit |= !piece.is_ascii();
    }

    /// Ends a line for a bare CR or LF: joins what came before it and its true line end.
    fn repaired(&mut self, cut: Option<Bytes>, part: Part, end: &'static [u8]) -> Step {
        self.count(end, part);
        self.end_line(false);
        let piece = match cut {
            None => Bytes::from_static(end),
            Some(piece) => {
                let mut joined = BytesMut::with_capacity(piece.len() + end.len());
                joined.extend_from_slice(&piece);
                joined.extend_from_slice(end);
                joined.freeze()
            }
        };
        match self.over() {
            Some(fault) => Step::Fault(fault),
            None => Step::Piece(part, piece),
        }
    }

    /// Bytes of a line, without line ends.
    fn text(&mut self, bytes: &[u8]) -> Option<Fault> {
        if bytes.is_empty() {
            return None;
        }
        self.line_start = false;
        self.line_len += bytes.len();
        if self.in_header && self.matched != MISMATCH {
            self.match_received(bytes);
        }
        if self.line_len > self.limits.line {
            return self.once(Fault::LongLine);
        }
        None
    }

    fn match_received(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let at = usize::from(self.matched);
            if at == RECEIVED.len() {
                if matches!(byte, b':' | b' ' | b'\t') {
                    self.hops += 1;
                }
                self.matched = MISMATCH;
            } else if byte.to_ascii_lowercase() == RECEIVED[at] {
                self.matched += 1;
            } else {
                self.matched = MISMATCH;
            }
            if self.matched == MISMATCH {
                return;
            }
        }
    }

    /// Returns whether that was the end of the header block.
    fn end_line(&mut self, crlf: bool) -> bool {
        let empty = self.line_start;
        self.line_start = true;
        self.after_crlf = crlf;
        self.line_len = 0;
        self.matched = 0;
        let ends_header = self.in_header && empty;
        self.in_header &= !empty;
        ends_header
    }

    /// The gravest fault so far, whatever came first: that must not depend on how the
    /// input was cut.
    pub fn worst(&self) -> Option<Fault> {
        let limits = &self.limits;
        [
            (self.size > limits.size, Fault::TooBig),
            (self.header_len > limits.header, Fault::LongHeader),
            (self.hops > limits.hops, Fault::Hops),
            (self.reported(Fault::Nul), Fault::Nul),
            (self.reported(Fault::LongLine), Fault::LongLine),
        ]
        .into_iter()
        .find_map(|(is, fault)| is.then_some(fault))
    }

    fn over(&mut self) -> Option<Fault> {
        let fault = if self.size > self.limits.size {
            Fault::TooBig
        } else if self.header_len > self.limits.header {
            Fault::LongHeader
        } else if self.hops > self.limits.hops {
            Fault::Hops
        } else {
            return None;
        };
        self.once(fault)
    }

    fn reported(&self, fault: Fault) -> bool {
        self.faults & (1 << fault as u8) != 0
    }

    fn once(&mut self, fault: Fault) -> Option<Fault> {
        if self.reported(fault) {
            return None;
        }
        self.faults |= 1 << fault as u8;
        Some(fault)
    }
}

/// What a dot at the start of a line is.
enum Dot {
    Unknown,
    End,
    Stuffed,
    /// Part of the text: a lone dot on a line whose ends are not both CRLF. It is reached
    /// only by a listener that repairs line ends; what follows decides on a fault.
    Text,
}

impl Dot {
    fn at(data: &[u8], after_crlf: bool) -> Dot {
        match data {
            [_] | [_, b'\r'] => Dot::Unknown,
            [_, b'\r', b'\n', ..] if after_crlf => Dot::End,
            [_, b'\r' | b'\n', ..] => Dot::Text,
            _ => Dot::Stuffed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        size: 10_000,
        header: 1_000,
        hops: 3,
        line: 998,
        repair: false,
    };

    /// Header, body, and how it ended.
    fn run(limits: Limits, dots: bool, input: &[u8]) -> (Vec<u8>, Vec<u8>, Option<Step>, usize) {
        let mut decoder = Decoder::new(limits, dots);
        let mut buf = BytesMut::from(input);
        let (mut header, mut body) = (Vec::new(), Vec::new());
        loop {
            let limit = buf.len();
            match decoder.step(&mut buf, limit) {
                Step::Need => return (header, body, None, buf.len()),
                Step::Piece(Part::Header, piece) => header.extend_from_slice(&piece),
                Step::Piece(Part::Body, piece) => body.extend_from_slice(&piece),
                last => return (header, body, Some(last), buf.len()),
            }
        }
    }

    fn strict(input: &[u8]) -> (Vec<u8>, Vec<u8>, Option<Step>, usize) {
        run(LIMITS, true, input)
    }

    #[test]
    fn the_gravest_fault_does_not_depend_on_the_cut() {
        let input = [&b"\r\n"[..], &[b'x'; 999], b"\0\r\n"].concat();
        let worst = |size: usize| {
            let mut decoder = Decoder::new(LIMITS, true);
            for piece in input.chunks(size) {
                let mut buf = BytesMut::from(piece);
                while !buf.is_empty() {
                    let limit = buf.len();
                    decoder.step(&mut buf, limit);
                }
            }
            decoder.worst()
        };
        assert_eq!(worst(input.len()), Some(Fault::Nul));
        assert_eq!(worst(1), Some(Fault::Nul));
        assert_eq!(worst(500), Some(Fault::Nul));
    }

    #[test]
    fn splits_header_from_body_and_unstuffs() {
        let (header, body, end, left) = strict(b"A: b\r\n\r\nx\r\n..y\r\n.z\r\n.\r\nQUIT");
        assert_eq!(header, b"A: b\r\n\r\n");
        assert_eq!(body, b"x\r\n.y\r\nz\r\n");
        assert_eq!((end, left), (Some(Step::End), 4));
        let (header, body, end, _) = strict(b"A: b\r\n.\r\n");
        assert_eq!((&header[..], &body[..]), (&b"A: b\r\n"[..], &b""[..]));
        assert_eq!(end, Some(Step::End));
        assert_eq!(strict(b".\r\n").2, Some(Step::End));
    }

    #[test]
    fn only_crlf_dot_crlf_ends_data() {
        let endings: &[&[u8]] = &[
            b"\n.\n",
            b"\n.\r\n",
            b"\r\n.\n",
            b"\r.\r",
            b"\r.\r\n",
            b"\r\n.\r",
            b"\r\r\n.\r\n",
            b"\n\n.\r\n",
            b"\r\n.\r\r\n",
            b"\n.\r",
            b"\r.\n",
        ];
        for ending in endings {
            let mut input = b"A: b\r\n\r\ntext".to_vec();
            input.extend_from_slice(ending);
            input.extend_from_slice(b"MAIL FROM:<evil@x.y>\r\n");
            let (_, _, end, _) = strict(&input);
            assert_eq!(end, Some(Step::Fault(Fault::BareLineEnd)), "{ending:?}");
        }
        // Characters between the dot and the line ends are text.
        for ending in ["\r\n. \r\n", "\r\n.\t\r\n", "\r\n..\r\n", "\r\n.\u{b}\r\n"] {
            let (_, _, end, left) = strict(format!("A: b\r\n\r\ntext{ending}").as_bytes());
            assert_eq!((end, left), (None, 0), "{ending:?}");
        }
        assert_eq!(
            strict(b"A: b\r\n\r\n\0\r\n").2,
            Some(Step::Fault(Fault::Nul))
        );
    }

    #[test]
    fn repairs_line_ends_but_takes_no_repaired_end() {
        let repair = Limits {
            repair: true,
            ..LIMITS
        };
        let (header, body, end, _) = run(
            repair,
            true,
            b"A: b\n\nx\n.\ny\r..z\r\n.\nq\n.\r\n\r\n.\r\n",
        );
        assert_eq!(header, b"A: b\r\n\r\n");
        assert_eq!(body, b"x\r\n.\r\ny\r\n.z\r\n.\r\nq\r\n.\r\n\r\n");
        assert_eq!(end, Some(Step::End));
    }

    #[test]
    fn limits() {
        let at = |fault| Some(Step::Fault(fault));
        let line = |n: usize| format!("A: b\r\n\r\n{}\r\n", "x".repeat(n)).into_bytes();
        assert_eq!(strict(&line(998)).2, None);
        assert_eq!(strict(&line(999)).2, at(Fault::LongLine));
        let small = |size| Limits { size, ..LIMITS };
        assert_eq!(run(small(17), true, &line(7)).2, None);
        assert_eq!(run(small(16), true, &line(7)).2, at(Fault::TooBig));
        let hops = |n: usize| format!("{}\r\n", "ReCeived: x\r\n\tReceived: y\r\n".repeat(n));
        assert_eq!(strict(hops(3).as_bytes()).2, None);
        assert_eq!(strict(hops(4).as_bytes()).2, at(Fault::Hops));
        assert_eq!(
            strict(&b"Received-SPF: x\r\nX-Received: y\r\n".repeat(9)).2,
            None
        );
        assert_eq!(strict(&b"A: b\r\n".repeat(166)).2, None);
        assert_eq!(strict(&b"A: b\r\n".repeat(167)).2, at(Fault::LongHeader));
    }

    #[test]
    fn dots_are_text_in_bdat() {
        let (_, body, end, _) = run(LIMITS, false, b"A: b\r\n\r\n.\r\n..\r\nx");
        assert_eq!((&body[..], end), (&b".\r\n..\r\nx"[..], None));
    }

    #[test]
    fn a_piece_without_dots_is_not_copied() {
        let mut buf = BytesMut::from(&b"A: b\r\n\r\nline\r\nline\r\n"[..]);
        let start = buf.as_ptr();
        let mut decoder = Decoder::new(LIMITS, true);
        let limit = buf.len();
        let Step::Piece(Part::Header, header) = decoder.step(&mut buf, limit) else {
            panic!("no header");
        };
        assert_eq!(header.as_ptr(), start);
        let limit = buf.len();
        let Step::Piece(Part::Body, body) = decoder.step(&mut buf, limit) else {
            panic!("no body");
        };
        assert_eq!(body.as_ptr(), start.wrapping_add(header.len()));
        assert_eq!(&body[..], b"line\r\nline\r\n");
    }
}
