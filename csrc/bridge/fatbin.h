/* The architectures that a fatbin has code for. */
#ifndef HL_BRIDGE_FATBIN_H
#define HL_BRIDGE_FATBIN_H

#include <stdbool.h>

/* Which of its code a device of this compute capability (10 * major + minor) runs: binary, the architecture of the machine
 * code, and ptx, the one that it was compiled from. False: not a fatbin, or one without code for this device. */
bool hl_bridge_fatbin_versions(const void *image, int capability, int *binary, int *ptx);

#endif
