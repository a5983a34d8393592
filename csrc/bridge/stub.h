/* What a generated stub expands to.
 *
 * Why: most of CUDA is never called by serving code, but a library that lacks one name fails to load. Every name is
 * exported; one that nobody wrote stops the program and says who called it. No stub returns success in silence: a
 * no-op needs a written reason in the manifest. The macros know no prototype on purpose, the real one stands in
 * NVIDIA's header and the arguments are never looked at. */
#ifndef HL_BRIDGE_STUB_H
#define HL_BRIDGE_STUB_H

/* An exported function of an NVIDIA library; stubgen finds implementations by it. */
#define HL_API __attribute__((visibility("default")))

/* Reports an unsupported call and aborts, or returns `result` where HYPERLAPSE_UNSUPPORTED asks for it. caller: the
 * return address of the call. */
long hl_bridge_unsupported(const char *name, const char *library, const void *caller, long result);

/* The same for a part of a supported call (an attribute, a flag, a type). */
long hl_bridge_unsupported_part(const char *name, const char *library, const char *part, long value, const void *caller,
                                long result);

#define HL_UNSUPPORTED(name, library, result)                                                                          \
    HL_API long name(void);                                                                                            \
    long name(void) { return hl_bridge_unsupported(#name, library, __builtin_return_address(0), result); }

#define HL_NOOP(name)                                                                                                  \
    HL_API long name(void);                                                                                            \
    long name(void) { return 0; }

#endif
