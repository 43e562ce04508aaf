//! An allocator for instances that live for one call: it hands out the next free bytes and
//! takes nothing back, except that the newest block can grow, shrink and go in place.
//!
//! It begins where the module's data ends, on the same page: a gap up to the next page of 64 KiB
//! would be kept in the snapshot of every revision.
//!
//! A call that begins with [`reserve`]d memory never grows the memory, which would cost it a
//! system call, and touches only pages that it uses. All that `init` leaves behind stays in
//! the snapshot, so `init` ends with a reservation for the calls to come.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;

/// What a call finds free: enough for an envelope of 1,000 recipients with its answer.
const RESERVED: usize = 512 * 1024;
const PAGE: usize = 64 * 1024;

struct Bump {
    /// First free byte and end of the free space; both 0 before the first use.
    space: UnsafeCell<(usize, usize)>,
}

// SAFETY: a policy's instance has one thread; wasm32-unknown-unknown without the atomics
// feature can't make another.
unsafe impl Sync for Bump {}

#[cfg(target_arch = "wasm32")]
unsafe extern "C" {
    /// The linker's word for the end of the data; it has an address and no value.
    static __heap_base: u8;
}

impl Bump {
    /// Before the first use there is what the data leaves free of the memory at the start.
    fn begin(&self) {
        #[cfg(target_arch = "wasm32")]
        {
            // SAFETY: one thread, and no reference into the cell is ever kept.
            let space = unsafe { &mut *self.space.get() };
            if space.1 == 0 {
                *space = (
                    (&raw const __heap_base) as usize,
                    core::arch::wasm32::memory_size(0) * PAGE,
                );
            }
        }
    }

    /// Makes room for `bytes` at the end of the free space. Returns whether there is.
    fn extend(&self, bytes: usize) -> bool {
        self.begin();
        #[cfg(target_arch = "wasm32")]
        {
            let pages = bytes.div_ceil(PAGE);
            let before = core::arch::wasm32::memory_grow(0, pages);
            if before == usize::MAX {
                return false;
            }
            let start = before * PAGE;
            // SAFETY: one thread, and no reference into the cell is ever kept.
            let space = unsafe { &mut *self.space.get() };
            if space.1 != start {
                space.0 = start;
            }
            space.1 = start + pages * PAGE;
            true
        }
        #[cfg(not(target_arch = "wasm32"))]
        {
            let _ = (bytes, PAGE);
            false
        }
    }
}

// SAFETY: `alloc` returns blocks that don't overlap: each begins at or after the end of the
// one before, within memory that this allocator got from `memory.grow` and nobody else
// knows of. Alignment is rounded up to. `realloc` and `dealloc` move the mark back only
// over the newest block.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        loop {
            // SAFETY: one thread, and the reference ends before `extend`.
            let (free, end) = unsafe { *self.space.get() };
            let start = (free + layout.align() - 1) & !(layout.align() - 1);
            match start.checked_add(layout.size()) {
                Some(next) if next <= end => {
                    // SAFETY: as above.
                    unsafe { (*self.space.get()).0 = next };
                    return start as *mut u8;
                }
                Some(_) if self.extend(layout.size() + layout.align() + PAGE) => {}
                _ => return core::ptr::null_mut(),
            }
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: one thread.
        let space = unsafe { &mut *self.space.get() };
        if at as usize + layout.size() == space.0 {
            space.0 = at as usize;
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout is valid; memory may have been used before by a block
        // that was given back, so it is cleared.
        unsafe {
            let at = self.alloc(layout);
            if !at.is_null() {
                core::ptr::write_bytes(at, 0, layout.size());
            }
            at
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: one thread, and no reference into the cell outlives a call of `extend`; the
        // block `at` of `layout` belongs to the caller, and a copy goes to a new block that does
        // not overlap it.
        unsafe {
            let start = at as usize;
            let (free, end) = *self.space.get();
            if start + layout.size() == free
                && let Some(next) = start.checked_add(size)
            {
                // Where the memory ends it can grow, so that a long body is never copied.
                if next > end {
                    self.extend(next - end);
                }
                let space = &mut *self.space.get();
                if space.0 == free && next <= space.1 {
                    space.0 = next;
                    return at;
                }
            }
            if size <= layout.size() {
                return at;
            }
            let to = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !to.is_null() {
                core::ptr::copy_nonoverlapping(at, to, layout.size());
            }
            to
        }
    }
}

#[cfg_attr(target_arch = "wasm32", global_allocator)]
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
static BUMP: Bump = Bump {
    space: UnsafeCell::new((0, 0)),
};

/// Leaves at least half a MiB free for each call that starts from this memory.
#[doc(hidden)]
pub fn reserve() {
    BUMP.begin();
    // SAFETY: one thread.
    let (free, end) = unsafe { *BUMP.space.get() };
    if end - free < RESERVED {
        BUMP.extend(RESERVED - (end - free));
    }
}
