package catalog

const mib = 1 << 20

// images is the catalog: the publishers' own addresses of their x86-64 images
// for BIOS machines with cloud-init (CirrOS: its own work-alike). An address
// with "latest" or "release" in it is replaced by its publisher with each new
// build; the others name one build, kept by the publisher.
//
// The first of a family carries the family's name as an alias: it is the
// newest.
var images = List{
	{
		Name: "cirros:0.6", Aliases: []string{"cirros", "cirros:0.6.3"},
		Description: "CirrOS 0.6.3, 21 MB: the smallest, for trying things out",
		URL:         "https://download.cirros-cloud.net/0.6.3/cirros-0.6.3-x86_64-disk.img",
		ChecksumURL: "https://download.cirros-cloud.net/0.6.3/SHA256SUMS",
		User:        "cirros", MinMemory: 128 * mib,
	},
	{
		Name: "debian:13", Aliases: []string{"debian", "debian:trixie", "trixie"},
		Description: "Debian 13 (trixie)",
		URL:         "https://cloud.debian.org/images/cloud/trixie/latest/debian-13-generic-amd64.qcow2",
		ChecksumURL: "https://cloud.debian.org/images/cloud/trixie/latest/SHA512SUMS",
		User:        "debian", MinMemory: 512 * mib,
	},
	{
		Name: "debian:12", Aliases: []string{"debian:bookworm", "bookworm"},
		Description: "Debian 12 (bookworm)",
		URL:         "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2",
		ChecksumURL: "https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS",
		User:        "debian", MinMemory: 512 * mib,
	},
	{
		Name: "ubuntu:24.04", Aliases: []string{"ubuntu", "ubuntu:noble", "noble"},
		Description: "Ubuntu 24.04 LTS (Noble Numbat)",
		URL:         "https://cloud-images.ubuntu.com/releases/noble/release/ubuntu-24.04-server-cloudimg-amd64.img",
		ChecksumURL: "https://cloud-images.ubuntu.com/releases/noble/release/SHA256SUMS",
		User:        "ubuntu", MinMemory: 1024 * mib,
	},
	{
		Name: "ubuntu:22.04", Aliases: []string{"ubuntu:jammy", "jammy"},
		Description: "Ubuntu 22.04 LTS (Jammy Jellyfish)",
		URL:         "https://cloud-images.ubuntu.com/releases/jammy/release/ubuntu-22.04-server-cloudimg-amd64.img",
		ChecksumURL: "https://cloud-images.ubuntu.com/releases/jammy/release/SHA256SUMS",
		User:        "ubuntu", MinMemory: 1024 * mib,
	},
	{
		Name: "fedora:44", Aliases: []string{"fedora"},
		Description: "Fedora Cloud 44",
		URL:         "https://download.fedoraproject.org/pub/fedora/linux/releases/44/Cloud/x86_64/images/Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2",
		ChecksumURL: "https://download.fedoraproject.org/pub/fedora/linux/releases/44/Cloud/x86_64/images/Fedora-Cloud-44-1.7-x86_64-CHECKSUM",
		User:        "fedora", MinMemory: 1024 * mib,
	},
	{
		Name: "almalinux:10", Aliases: []string{"almalinux", "alma", "alma:10"},
		Description: "AlmaLinux 10 (needs a CPU of level x86-64-v3)",
		URL:         "https://repo.almalinux.org/almalinux/10/cloud/x86_64/images/AlmaLinux-10-GenericCloud-latest.x86_64.qcow2",
		ChecksumURL: "https://repo.almalinux.org/almalinux/10/cloud/x86_64/images/CHECKSUM",
		User:        "almalinux", MinMemory: 1024 * mib,
	},
	{
		Name: "almalinux:9", Aliases: []string{"alma:9"},
		Description: "AlmaLinux 9 (needs a CPU of level x86-64-v2)",
		URL:         "https://repo.almalinux.org/almalinux/9/cloud/x86_64/images/AlmaLinux-9-GenericCloud-latest.x86_64.qcow2",
		ChecksumURL: "https://repo.almalinux.org/almalinux/9/cloud/x86_64/images/CHECKSUM",
		User:        "almalinux", MinMemory: 1024 * mib,
	},
	{
		Name: "alpine:3.23", Aliases: []string{"alpine", "alpine:3.23.4"},
		Description: "Alpine Linux 3.23.4 with cloud-init",
		URL:         "https://dl-cdn.alpinelinux.org/alpine/v3.23/releases/cloud/nocloud_alpine-3.23.4-x86_64-bios-cloudinit-r0.qcow2",
		ChecksumURL: "https://dl-cdn.alpinelinux.org/alpine/v3.23/releases/cloud/nocloud_alpine-3.23.4-x86_64-bios-cloudinit-r0.qcow2.sha512",
		User:        "alpine", MinMemory: 256 * mib,
	},
}
