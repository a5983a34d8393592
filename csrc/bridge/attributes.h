/* What the driver, the runtime and NVML say about a device, derived from its facts. */
#ifndef HL_BRIDGE_ATTRIBUTES_H
#define HL_BRIDGE_ATTRIBUTES_H

#include <stdbool.h>
#include <stdint.h>

#include "core/device.h"

/* Value of a CU_DEVICE_ATTRIBUTE_* (cudaDevAttr* has the same numbers). False: this attribute is not known here. */
bool hl_bridge_attributes_get(uint32_t device, int attribute, int *value);

/* Can kernels and copies of one device reach the other's memory? Over NVLink? */
bool hl_bridge_attributes_peers(uint32_t device, uint32_t peer);
bool hl_bridge_attributes_linked(uint32_t device, uint32_t peer);
/* A CU_DEVICE_P2P_ATTRIBUTE_* (cudaDevP2PAttr* has the same numbers). False: this attribute is not known here. */
bool hl_bridge_attributes_p2p(uint32_t device, uint32_t peer, int attribute, int *value);

/* Stable over runs: made from the profile's name and the device's number. */
void hl_bridge_attributes_uuid(uint32_t device, uint8_t uuid[16]);
void hl_bridge_attributes_uuid_text(uint32_t device, char text[48]);

/* "0000:1A:00.0", as cudaDeviceGetPCIBusId writes it. */
void hl_bridge_attributes_pci_text(uint32_t device, char text[16]);

#endif
