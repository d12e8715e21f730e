package qemu

import "testing"

// TestConnecting reads tables as QEMU 7.2 prints them.
func TestConnecting(t *testing.T) {
	const table = "Hub -1 (net0):\r\n" +
		"  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n" +
		"  TCP[ESTABLISHED]   16       127.0.0.1  8080       10.0.2.15    80     0     0\r\n" +
		"  TCP[SYN_SENT]      15       127.0.0.1  8081       10.0.2.15    81     0     0\r\n" +
		"  TCP[HOST_FORWARD]  14       127.0.0.1  8081       10.0.2.15    81     0     0\r\n" +
		"  TCP[HOST_FORWARD]  13       127.0.0.1  8080       10.0.2.15    80     0     0\r\n" +
		"  UDP[236 sec]       12       127.0.0.1  8082       10.0.2.3     53     0     0\r\n"
	for port, want := range map[int]bool{8080: false, 8081: true, 8082: false, 80: false, 81: false} {
		if got := connecting(table, port); got != want {
			t.Errorf("port %d: %v, want %v", port, got, want)
		}
	}
	if connecting("", 1) {
		t.Error("of nothing")
	}
}
