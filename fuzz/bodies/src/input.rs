//! Values taken from the front of an input. What is missing is zero or empty, so that every input
//! means something and a longer one means a little more.

pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Input(bytes)
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    pub fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub fn bit(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Up to the next 0xFF, which is in no UTF-8 text.
    pub fn bytes(&mut self) -> &'a [u8] {
        let (piece, rest) = match self.0.iter().position(|b| *b == 0xff) {
            Some(end) => (&self.0[..end], &self.0[end + 1..]),
            None => (self.0, &[][..]),
        };
        self.0 = rest;
        piece
    }

    /// The same as text; what is not UTF-8 is replaced.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
