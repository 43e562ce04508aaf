//! Policies written as a script: a ready-made engine (`plugins/js`, `plugins/python`) with the
//! script in it.
//!
//! The engine has room for a script in its data, behind a marker. Filling it in takes no
//! compiler: the result is an ordinary core module, uploaded and run like any other.

/// What the room begins with in `plugins/script/host.h`.
const MARKER: &[u8] = b"TIDEGATE-POLICY-SCRIPT-1";

/// Why there is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    #[error("the engine has no room for a script; it is not one of Tidegate's")]
    NoEngine,
    #[error("the script has {len} bytes; at most {room}")]
    TooLong { len: usize, room: usize },
}

/// A copy of the engine that runs the script.
pub fn embed(engine: &[u8], script: &str) -> Result<Vec<u8>, ScriptError> {
    let at = engine
        .windows(MARKER.len())
        .position(|window| window == MARKER)
        .ok_or(ScriptError::NoEngine)?
        + MARKER.len();
    let mut policy = engine.to_vec();
    let (room, rest) = policy[at..]
        .split_first_chunk_mut::<4>()
        .ok_or(ScriptError::NoEngine)?;
    let room = u32::from_le_bytes(*room) as usize;
    let (len, rest) = rest
        .split_first_chunk_mut::<4>()
        .ok_or(ScriptError::NoEngine)?;
    let text = rest.get_mut(..room).ok_or(ScriptError::NoEngine)?;
    if script.len() > room {
        return Err(ScriptError::TooLong {
            len: script.len(),
            room,
        });
    }
    // The length fits: it is at most `room`.
    *len = (script.len() as u32).to_le_bytes();
    text.fill(0);
    text[..script.len()].copy_from_slice(script.as_bytes());
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(room: u32) -> Vec<u8> {
        let mut bytes = b"\0asm....".to_vec();
        bytes.extend_from_slice(MARKER);
        bytes.extend_from_slice(&room.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend(vec![7; room as usize]);
        bytes.extend_from_slice(b"tail");
        bytes
    }

    #[test]
    fn the_script_takes_its_room_and_nothing_else() {
        let before = engine(8);
        let after = embed(&before, "abc").unwrap();
        assert_eq!(after.len(), before.len());
        assert!(after.ends_with(b"\x03\0\0\0abc\0\0\0\0\0tail"), "{after:?}");
        // Once more with another one.
        assert_eq!(embed(&after, "abc").unwrap(), after);
        assert_eq!(
            embed(&before, "123456789"),
            Err(ScriptError::TooLong { len: 9, room: 8 })
        );
        assert_eq!(embed(b"\0asm", "x"), Err(ScriptError::NoEngine));
        assert_eq!(
            embed(&engine(8)[..40], "x"),
            Err(ScriptError::NoEngine),
            "cut short"
        );
    }
}
