/* store_guard.h - a file cut short under a mapping, or memory that fails, must not end the process.
 *
 * Touching a page that is not there any more raises SIGBUS. The handler looks the address up among
 * the guarded ranges, puts zero pages over the rest of that range and raises the range's flag;
 * whoever reads on gets zeros and must look at the flag before using them. A SIGBUS anywhere else
 * ends the process as it always did.
 * Threads: add and remove from any; the handler takes no lock. */
#ifndef MR_MEMSHARD_STORE_GUARD_H
#define MR_MEMSHARD_STORE_GUARD_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* The slot, or -1 when base is NULL or no slot is left (MR_GUARDS_MAX ranges). *flag goes from 0 to
 * 1 at the first fault and lives until remove. The first call installs the handler. */
enum { MR_GUARDS_MAX = 1 << 20 };
int mr_guard_add(void *base, size_t bytes, _Atomic uint32_t *flag);
void mr_guard_install(void);    /* again, where somebody else took SIGBUS over since */
void mr_guard_remove(int slot); /* before the range is unmapped; -1 is fine */

#endif
