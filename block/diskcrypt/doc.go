// Package diskcrypt encrypts the sectors of disks as QEMU and dm-crypt do: the
// ciphers, modes and IV generators, the LUKS1 header with its key slots, and
// the AES of old qcow2 images.
//
// Sectors have 512 bytes; what is encrypted is always whole sectors. Names of
// algorithms are those of QEMU ("aes-256", "xts", "plain64", "sha256"). The
// texts of errors that a person can cause are stock QEMU's.
//
// Sources: "LUKS On-Disk Format Specification", version 1.2.3, and QEMU's
// docs/interop/qcow2.
package diskcrypt

// SectorSize is the unit of encryption in bytes.
const SectorSize = 512
