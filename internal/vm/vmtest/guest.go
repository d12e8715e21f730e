package vmtest

import (
	"os"
	"path/filepath"
	"testing"
)

// Ready is what the tiny guest writes to the serial port and to the screen.
const Ready = "LAMINA GUEST READY"

// Commands of the tiny guest: single characters on the serial port, which
// echoes each one. The power button does what PowerOff does.
const (
	PowerOff = "s"
	Panic    = "p" // tells the pvpanic device that its kernel panicked
	Reset    = "r"
	Graphics = "g" // 640 x 480 pixels, no text
	Scroll   = "l" // the screen begins 10 rows further down in VGA memory, with "Sd" 20 rows below
)

// bootSector is the tiny guest, at 0x7c00 in real mode. It writes Ready, then
// sleeps and looks for the power button and for commands at each timer tick.
var bootSector = []byte{
	0x31, 0xc0, // xor ax, ax
	0x8e, 0xd8, // mov ds, ax
	0x8e, 0xd0, // mov ss, ax
	0xbc, 0x00, 0x7c, // mov sp, 0x7c00
	0xfc,             // cld
	0xba, 0x02, 0x06, // mov dx, 0x602 (PM1 enable)
	0xb8, 0x00, 0x01, // mov ax, 0x100 (power button)
	0xef,             // out dx, ax
	0xbe, 0x91, 0x7c, // mov si, message
	// 0x7c14 next:
	0xac,       // lodsb
	0x84, 0xc0, // test al, al
	0x74, 0x0d, // jz ready
	0xb4, 0x0e, // mov ah, 0x0e (teletype)
	0xbb, 0x07, 0x00, // mov bx, 7
	0xcd, 0x10, // int 0x10
	0xba, 0xf8, 0x03, // mov dx, 0x3f8 (ttyS0)
	0xee,       // out dx, al
	0xeb, 0xee, // jmp next
	// 0x7c26 ready:
	0xfb,             // sti
	0xf4,             // hlt
	0xba, 0x00, 0x06, // mov dx, 0x600 (PM1 status)
	0xed,             // in ax, dx
	0xf6, 0xc4, 0x01, // test ah, 1 (power button)
	0x75, 0x22, // jnz power
	0xba, 0xfd, 0x03, // mov dx, 0x3fd (line status)
	0xec,       // in al, dx
	0xa8, 0x01, // test al, 1 (a byte is there)
	0x74, 0xed, // jz ready
	0xb2, 0xf8, // mov dl, 0xf8
	0xec,      // in al, dx
	0xee,      // out dx, al
	0x3c, 's', // cmp al, 's'
	0x74, 0x12, // je power
	0x3c, 'p', // cmp al, 'p'
	0x74, 0x17, // je panic
	0x3c, 'r', // cmp al, 'r'
	0x74, 0x1b, // je reset
	0x3c, 'g', // cmp al, 'g'
	0x74, 0x1d, // je graphics
	0x3c, 'l', // cmp al, 'l'
	0x74, 0x20, // je scroll
	0xeb, 0xd3, // jmp ready
	// 0x7c53 power:
	0xba, 0x04, 0x06, // mov dx, 0x604 (PM1 control)
	0xb8, 0x00, 0x20, // mov ax, 0x2000 (soft off)
	0xef,       // out dx, ax
	0xeb, 0xca, // jmp ready
	// 0x7c5c panic:
	0xba, 0x05, 0x05, // mov dx, 0x505 (pvpanic)
	0xb0, 0x01, // mov al, 1
	0xee,       // out dx, al
	0xeb, 0xc2, // jmp ready
	// 0x7c64 reset:
	0xb0, 0xfe, // mov al, 0xfe
	0xe6, 0x64, // out 0x64, al (keyboard controller)
	0xeb, 0xbc, // jmp ready
	// 0x7c6a graphics:
	0xb8, 0x12, 0x00, // mov ax, 0x12
	0xcd, 0x10, // int 0x10
	0xeb, 0xb5, // jmp ready
	// 0x7c71 scroll:
	0xb8, 0x00, 0xb8, // mov ax, 0xb800
	0x8e, 0xc0, // mov es, ax
	0x26, 0xc7, 0x06, 0xc0, 0x12, 'S', 0x07, // mov word es:[30*160], 'S' in grey
	0x26, 0xc7, 0x06, 0xc2, 0x12, 'd', 0x07, // mov word es:[30*160+2], 'd'
	0xba, 0xd4, 0x03, // mov dx, 0x3d4 (CRTC)
	0xb8, 0x0c, 0x03, // mov ax, 0x030c (start high: 0x03)
	0xef,             // out dx, ax
	0xb8, 0x0d, 0x20, // mov ax, 0x200d (start low: 0x20, in all 800 cells)
	0xef,       // out dx, ax
	0xeb, 0x95, // jmp ready
	// 0x7c91 message:
}

// Image writes the tiny guest's disk, a raw image of 1 MiB, and returns its
// path.
func Image(t testing.TB) string {
	t.Helper()
	disk := make([]byte, 1<<20)
	n := copy(disk, bootSector)
	copy(disk[n:], Ready+"\r\n\x00")
	disk[510], disk[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "guest.raw")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
