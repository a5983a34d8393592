/* Visibility: everything is hidden but what another library of ours, or Python, binds. */
#ifndef HL_CORE_EXPORT_H
#define HL_CORE_EXPORT_H

#define HL_EXPORT __attribute__((visibility("default")))

#endif
