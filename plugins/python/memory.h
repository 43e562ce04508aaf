/* Where the interpreter's memory comes from; before any of its files. */
#include <stdlib.h>

void *script_room(size_t size);
void *script_more(void *old, size_t size);

#define PK_MALLOC(size) script_room(size)
#define PK_REALLOC(old, size) script_more(old, size)
#define PK_FREE(old) free(old)
