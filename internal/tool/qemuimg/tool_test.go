package qemuimg

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// start runs ours as a program of its own.
func start(t *testing.T, dir string, wrap []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	words := append(append(append([]string{}, wrap...), self), args...)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asTool+"=1")
	return cmd
}

// TestUnreadable has both tools, as an ordinary user, open a file that only
// root may read.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "secret"), make([]byte, 4096))
	if err := os.Chmod(filepath.Join(dir, "secret"), 0); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary lies where only its owner may go.
	tool := filepath.Join(dir, "tool")
	if out, err := exec.Command("cp", self, tool).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{"info secret", "map secret", "check -f qcow2 secret", "convert secret x", "resize -f raw secret 5M", "create secret 1M", "create -f qcow2 x 1M"} {
		var got [2]string
		for i, path := range []string{qemutest.Path(t, "qemu-img"), tool} {
			cmd := exec.Command(path, words(line)...)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "LC_ALL=C", asTool+"=1")
			if os.Getuid() == 0 {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			}
			out, err := cmd.CombinedOutput()
			got[i] = fmt.Sprintf("%s(%v)", out, err)
		}
		if got[0] != got[1] || !strings.Contains(got[1], "Permission denied") {
			t.Errorf("%s:\nours  %s\nstock %s", line, got[1], got[0])
		}
	}
}

// TestClosedPipe: whoever read our output may go away, as head does: the work
// is done to its end all the same, with the stock tool's status.
func TestClosedPipe(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.raw"), bytes.Repeat([]byte("lamina"), 100_000))
	for _, line := range []string{"info -f raw a.raw", "map --output=json -f raw a.raw", "convert -p -f raw -O qcow2 a.raw x"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Close() // nobody reads
		var errb bytes.Buffer
		cmd := start(t, dir, nil, words(line)...)
		cmd.Stdout, cmd.Stderr = w, &errb
		err = cmd.Run()
		_ = w.Close() // it was never read
		if err != nil || errb.Len() > 0 {
			t.Errorf("%s: %v, %q; want success, as of the stock tool", line, err, errb.String())
		}
	}
	if got := runTool(t, false, dir, words("compare -f raw -F qcow2 a.raw x")); got.status != 0 {
		t.Errorf("the copy differs: %+v", got)
	}
}

// TestFullDisk: a conversion to a full file system fails with the system's
// words, and leaves neither a target nor a changed source.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	data := make([]byte, 4<<20)
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	put(t, src, data)
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	// A mount of its own for each run, which goes with the process.
	unshare := []string{qemutest.Path(t, "unshare"), "-m"}
	if os.Getuid() != 0 {
		unshare = append(unshare, "-r")
	}
	script := `mount -t tmpfs -o size=1M none "$0" && "$@"; s=$?; ls "$0"; exit $s`
	for _, args := range [][]string{
		{"convert", "-f", "raw", "-O", "qcow2", src, filepath.Join(mnt, "x")},
		{"convert", "-f", "raw", src, filepath.Join(mnt, "x")},
		{"convert", "-c", "-f", "raw", "-O", "qcow2", src, filepath.Join(mnt, "x")},
		{"create", "-q", "-o", "preallocation=full", filepath.Join(mnt, "x"), "5M"},
		{"create", "-q", "-f", "qcow2", "-o", "preallocation=falloc", filepath.Join(mnt, "x"), "5M"},
	} {
		cmd := start(t, dir, append(unshare, "sh", "-c", script, mnt), args...)
		var out, errb bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errb
		err := cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(errb.String(), "No space left on device") {
			t.Errorf("%q: %v, %s", args, err, errb.String())
		}
		if out.Len() != 0 {
			t.Errorf("%q left %s", args, out.String())
		}
	}
	if after, err := os.ReadFile(src); err != nil || !bytes.Equal(after, data) {
		t.Errorf("the source was changed: %v", err)
	}
}

// slow starts a conversion that takes long, and waits until it is under way.
func slow(t *testing.T) (cmd *exec.Cmd, target string, stderr *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "src"), bytes.Repeat([]byte{1}, 32<<20))
	cmd = start(t, dir, nil, "convert", "-f", "raw", "-r", "2M", "src", "x")
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	target = filepath.Join(dir, "x")
	for range 1000 {
		if st, err := os.Stat(target); err == nil && st.Sys().(*syscall.Stat_t).Blocks > 16 {
			return cmd, target, stderr
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the conversion did not begin")
	return nil, "", nil
}

// TestSignals: SIGUSR1 shows how far it is, SIGTERM stops it and removes the
// target.
func TestSignals(t *testing.T) {
	cmd, target, stderr := slow(t)
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("status %d", code)
	}
	text := stderr.String()
	if !strings.Contains(text, "/100%)\n") || !strings.Contains(text, "interrupted") {
		t.Errorf("stderr %q", text)
	}
	if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target is still there: %v", err)
	}
}

// TestOutputGone: what could not be written to standard output is an error.
func TestOutputGone(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	var stderr bytes.Buffer
	if status := Main("qemu-img", []string{"--help"}, nil, full, &stderr); status != 1 || !strings.Contains(stderr.String(), "standard output") {
		t.Errorf("status %d, %s", status, stderr.String())
	}
}

func TestProgramName(t *testing.T) {
	var stderr bytes.Buffer
	if status := Main("lamina img", nil, nil, io.Discard, &stderr); status != 1 || stderr.String() != "lamina img: Not enough arguments\nTry 'lamina img --help' for more information\n" {
		t.Errorf("status %d, %q", status, stderr.String())
	}
}

func TestHumanSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1: "1 B", 999: "999 B", 1000: "0.977 KiB", 1023: "0.999 KiB", 1024: "1 KiB", 10485760: "10 MiB", 1<<63 - 1: "8 EiB", 197120: "192 KiB"} {
		if got := humanSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestHumanSizeLikeStock compares with what the stock tool prints.
func TestHumanSizeLikeStock(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "x")
	put(t, name, nil)
	for _, n := range []int64{512, 1024, 999 * 512, 1000 << 10, 1023 << 10, 1023488, 1048064, 1<<30 - 512, 1000 << 20, 123456 * 512, 5 << 40, 1<<42 + 512} {
		if err := os.Truncate(name, n); err != nil {
			t.Fatal(err)
		}
		want := "virtual size: " + humanSize(n) + " ("
		if out := qemutest.Img(t, "info", "-f", "raw", name); !strings.Contains(out, want) {
			t.Errorf("%d: we say %q, stock says\n%s", n, want, out)
		}
	}
}

var update = flag.Bool("update", false, "rewrite the table of docs/compatibility.md")

// TestCompatibilityPage holds that docs/compatibility.md lists every intended
// difference of the table, and nothing else.
func TestCompatibilityPage(t *testing.T) {
	const page = "../../../docs/compatibility.md"
	const begin, end = "<!-- differences: written by `go test ./internal/tool/qemuimg -run TestCompatibilityPage -update` -->\n", "<!-- end -->\n"
	var b strings.Builder
	b.WriteString("\n| command | what differs, and why |\n| --- | --- |\n")
	lines := 0
	for _, group := range table {
		for _, c := range group.cases {
			lines += strings.Count(c.lines, ";") + 1
			if c.why != "" {
				fmt.Fprintf(&b, "| `qemu-img %s` | %s |\n", strings.ReplaceAll(c.lines, "|", `\|`), c.why)
			}
		}
	}
	fmt.Fprintf(&b, "\n%d command lines are compared.\n\n", lines)
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s lacks its markers", page)
	}
	want := head + begin + b.String() + end + tail
	if *update {
		put(t, page, []byte(want))
	} else if want != string(text) {
		t.Errorf("%s is not up to date: run the command in it", page)
	}
}
