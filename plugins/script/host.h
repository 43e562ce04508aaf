/* What an engine for scripts has around it: room for the script, and the system calls of a C
 * library answered without a system. There is no clock, no chance and no input but the
 * arguments: the time is that of the call. Included once, by an engine. */
#define TG_LIBC
#include "tidegate.h"

#include <stdint.h>
#include <stdio.h>

#define SCRIPT_ROOM 131072

/* The marker, the bytes there are, the bytes in use, the script; `tidegate policy build` writes
 * the latter two. Not in .bss: the bytes must be in the file. */
__attribute__((used, aligned(16))) volatile struct {
    char marker[24];
    uint32_t room, len;
    char text[SCRIPT_ROOM];
    char end[8];
} script = { "TIDEGATE-POLICY-SCRIPT-1", SCRIPT_ROOM, 0, { 0 }, "THE-END" };

/* A copy with a zero byte at its end; 0: no script. */
static char *script_text(void) {
    if (!script.len) return 0;
    char *source = tg_alloc(script.len + 1, 1);
    memcpy(source, (const char *)script.text, script.len);
    source[script.len] = 0;
    return source;
}

#define NO_SCRIPT TG("no script: make the policy with tidegate policy build")

/* The time of the call, milliseconds since the Unix epoch; 0 while the script is prepared. */
static uint64_t now_ms;

int32_t __imported_wasi_snapshot_preview1_clock_time_get(int32_t id, int64_t precision, int32_t at) {
    (void)id, (void)precision;
    *(uint64_t *)at = now_ms * 1000000;
    return 0;
}
int32_t __imported_wasi_snapshot_preview1_fd_read(int32_t a, int32_t b, int32_t c, int32_t at) {
    (void)a, (void)b, (void)c, (void)at;
    return 8;
}
int32_t __imported_wasi_snapshot_preview1_fd_write(int32_t a, int32_t b, int32_t c, int32_t at) {
    (void)a, (void)b, (void)c, (void)at;
    return 8;
}
int32_t __imported_wasi_snapshot_preview1_fd_seek(int32_t a, int64_t b, int32_t c, int32_t at) {
    (void)a, (void)b, (void)c, (void)at;
    return 8;
}
int32_t __imported_wasi_snapshot_preview1_fd_close(int32_t a) { (void)a; return 8; }
int32_t __imported_wasi_snapshot_preview1_fd_fdstat_get(int32_t a, int32_t at) {
    (void)a, (void)at;
    return 8;
}
int32_t __imported_wasi_snapshot_preview1_environ_get(int32_t a, int32_t b) { (void)a, (void)b; return 0; }
int32_t __imported_wasi_snapshot_preview1_environ_sizes_get(int32_t count, int32_t size) {
    *(uint32_t *)count = 0, *(uint32_t *)size = 0;
    return 0;
}
void __imported_wasi_snapshot_preview1_proc_exit(int32_t code) { (void)code; __builtin_trap(); }
