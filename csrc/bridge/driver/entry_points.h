/* The table that cuGetProcAddress answers from (csrc/api/generated/entry_points.c). */
#ifndef HL_BRIDGE_DRIVER_ENTRY_POINTS_H
#define HL_BRIDGE_DRIVER_ENTRY_POINTS_H

typedef struct hl_bridge_entry_point {
    const char *name; /* without version suffix; the table is sorted by it, newest version first */
    int version;      /* first CUDA version with this form: 1000 * major + 10 * minor */
    int per_thread;   /* 1: the form for per-thread default streams */
    void (*function)(void);
} hl_bridge_entry_point;

extern const hl_bridge_entry_point hl_bridge_entry_points[];
extern const unsigned hl_bridge_entry_points_count;

#endif
