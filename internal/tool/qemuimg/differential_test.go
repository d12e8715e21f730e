package qemuimg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// asTool in the environment makes the test binary the tool itself, so that it
// runs as a program of its own beside the stock one.
const asTool = "LAMINA_TEST_AS_QEMU_IMG"

func TestMain(m *testing.M) {
	if os.Getenv(asTool) != "" {
		status := Main("qemu-img", os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
		writePeak()
		os.Exit(status)
	}
	// The stock tool opens a chain that loops until it runs out of file
	// descriptors: let that be soon.
	few := syscall.Rlimit{Cur: 256, Max: 256}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// result is what a tool did.
type result struct {
	stdout, stderr string
	status         int
}

// runTool runs stock qemu-img, or ours, in a folder.
func runTool(t *testing.T, ours bool, dir string, args []string) result {
	t.Helper()
	path := qemutest.Path(t, "qemu-img")
	if ours {
		var err error
		if path, err = os.Executable(); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	if ours {
		cmd.Env = append(cmd.Env, asTool+"=1")
	}
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil && !exit.Exited() {
		t.Fatalf("%q: %v\n%s", args, err, errb.String())
	}
	r := result{out.String(), errb.String(), cmd.ProcessState.ExitCode()}
	if !ours && strings.Contains(r.stderr, "Unable to get accurate CPU usage") {
		// On a busy machine stock gives up measuring how fast it is.
		return runTool(t, ours, dir, args)
	}
	return r
}

// diskSize is what each tool's images take on the host: not to be the same,
// ours are to be smaller.
var diskSize = regexp.MustCompile(`(disk size: |"actual-size": )[^\n,]*`)

// dates are when the tools made a snapshot.
var dates = regexp.MustCompile(`20\d\d-\d\d-\d\d \d\d:\d\d:\d\d|"date-n?sec": \d+`)

// benchTime is how long a bench took.
var benchTime = regexp.MustCompile(`Run completed in [0-9.]+ seconds`)

// words splits a command line at spaces; single quotes keep what is in them.
func words(line string) []string {
	var list []string
	for line = strings.TrimLeft(line, " "); line != ""; line = strings.TrimLeft(line, " ") {
		if rest, ok := strings.CutPrefix(line, "'"); ok {
			word, after, _ := strings.Cut(rest, "'")
			list, line = append(list, word), after
			continue
		}
		word, after, _ := strings.Cut(line, " ")
		list, line = append(list, word), after
	}
	return list
}

// fixtures makes the images that the command lines work on, with the stock
// tools only.
func fixtures(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	img := func(line string) {
		t.Helper()
		if r := runTool(t, false, dir, words(line)); r.status != 0 {
			t.Fatalf("qemu-img %s: %s", line, r.stderr)
		}
	}
	write := func(format, file string, cmds ...string) {
		t.Helper()
		qemutest.IO(t, format, filepath.Join(dir, file), cmds...)
	}
	for _, line := range []string{
		"create -q -f raw a.raw 10M", "create -q -f raw small 1M", "create -q -f qcow2 a.qcow2 10M",
		"create -q -f qcow2 -b a.raw -F raw b.qcow2", "create -q -f qcow2 -b b.qcow2 -F qcow2 c.qcow2 12M",
		"create -q -f qcow2 -u -b nope.raw -F raw missing.qcow2 10M", "create -q -f qcow2 -u -b missing.qcow2 -F qcow2 missing2.qcow2 10M",
		"create -q -f qcow2 -u -b loop2.qcow2 -F qcow2 loop1.qcow2 1M", "create -q -f qcow2 -u -b loop1.qcow2 -F qcow2 loop2.qcow2 1M",
		"create -q -f qcow2 -u -b ./self.qcow2 -F qcow2 self.qcow2 1M",
		"create -q -f qcow2 -o compat=0.10 v2.qcow2 1M", "create -q -f qcow2 -o lazy_refcounts=on dirty.qcow2 1M",
		"create -q -f qcow2 -o preallocation=metadata prealloc.qcow2 1M", "create -q -f qcow2 zero.qcow2 0",
		"create -q -f qcow2 -o cluster_size=512 small.qcow2 1M", "create -q -f qcow2 snap.qcow2 1M",
	} {
		img(line)
	}
	write("raw", "a.raw", "write -P 1 2M 64k", "write -P 2 5M 192k")
	write("qcow2", "c.qcow2", "write -P 3 1M 256k", "write -z 3M 1M", "write -P 4 11M 4k")
	write("qcow2", "small.qcow2", "write -P 5 0 3k", "write -P 6 10k 20k")
	img("create -q -f qcow2 -b c.qcow2 -F qcow2 deep.qcow2")
	write("qcow2", "deep.qcow2", "write -z 0 1M", "write -P 7 5M 64k", "write -z -u 2M 128k")
	img("convert -c -O qcow2 c.qcow2 comp.qcow2")
	img("snapshot -c one snap.qcow2")
	write("qcow2", "snap.qcow2", "write -P 8 0 64k")
	img("snapshot -c two snap.qcow2")
	for _, v := range []struct{ name, options string }{{"snaps.qcow2", "cluster_size=4k"}, {"oldsnaps.qcow2", "compat=0.10,cluster_size=512"}} {
		img("create -q -f qcow2 -o " + v.options + " -b a.raw -F raw " + v.name)
		write("qcow2", v.name, "write -P 9 2M 20k", "write -c -P 10 4M 4k", "write -P 11 10200k 40k")
		img("snapshot -c one " + v.name)
		write("qcow2", v.name, "write -z 1M 1M", "write -P 12 2052k 4k", "discard 10200k 40k", "write -P 13 0 700")
		img("snapshot -c two " + v.name)
		write("qcow2", v.name, "write -P 14 0 10M")
		img("snapshot -c 1 " + v.name)
		img("snapshot -c '' " + v.name)
		write("qcow2", v.name, "write -z 0 10M")
	}
	for _, size := range []string{"3M", "512k"} {
		name := "snap" + size + ".qcow2"
		img("create -q -f qcow2 -b small -F raw " + name)
		write("qcow2", name, "write -P 15 0 64k", "write -P 16 960k 64k")
		img("snapshot -c one " + name)
		img("resize -q --shrink " + name + " " + size)
		write("qcow2", name, "write -P 17 0 512k")
	}
	img("create -q -f qcow2 vm.qcow2 1M")
	write("qcow2", "vm.qcow2", "write -P 18 100k 300k")
	qemutest.SaveVM(t, filepath.Join(dir, "vm.qcow2"), "running")
	write("qcow2", "vm.qcow2", "write -P 19 0 1M")
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	img("create -q -f raw d/base.raw 1M")
	img("create -q -f qcow2 -b base.raw -F raw d/over.qcow2")
	poke(t, filepath.Join(dir, "dirty.qcow2"), 79, 1)
	damaged(t, dir)
	damagedSnapshots(t, dir)
	for link, to := range map[string]string{"link.qcow2": "a.qcow2", "dangling": "nowhere", "ring": "ring"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(dir, "empty"), nil)
	put(t, filepath.Join(dir, "garbage"), []byte("garbage"))
	return dir
}

// damaged makes images that break the specification, out of a.qcow2.
func damaged(t *testing.T, dir string) {
	t.Helper()
	good, err := os.ReadFile(filepath.Join(dir, "a.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{3, 8, 60, 100, 66000} {
		put(t, filepath.Join(dir, fmt.Sprintf("cut%d.qcow2", n)), good[:n])
	}
	for _, d := range damages {
		name := filepath.Join(dir, d.name+".qcow2")
		put(t, name, good)
		poke(t, name, d.at, d.bytes...)
	}
}

// damages are changes of a version 3 header.
var damages = []struct {
	name  string
	at    int64
	bytes []byte
}{
	{"version", 4, []byte{0, 0, 0, 4}},
	{"cluster48", 20, []byte{0, 0, 0, 48}},
	{"cluster8", 20, []byte{0, 0, 0, 8}},
	{"huge", 24, []byte{0x7f, 255, 255, 255, 255, 255, 255, 0}},
	{"crypt", 32, []byte{0, 0, 0, 9}},
	{"l1huge", 36, []byte{0x7f, 255, 255, 255}},
	{"l1none", 36, []byte{0, 0, 0, 0}},
	{"l1odd", 40, []byte{0, 0, 0, 0, 0, 0, 0, 1}},
	{"reftable", 48, []byte{0x7f, 255, 255, 255, 255, 255, 0, 0}},
	{"reftablehuge", 56, []byte{0x7f, 255, 255, 255}},
	{"snaphuge", 60, []byte{0, 255, 255, 255}},
	{"incompat", 72, []byte{0x80, 0, 0, 0, 0, 0, 0, 0}},
	{"corruptbit", 79, []byte{2}},
	{"compressbit", 79, []byte{8}},
	{"refbits", 96, []byte{0, 0, 0, 9}},
	{"headershort", 100, []byte{0, 0, 0, 16}},
	{"headerlong", 100, []byte{0x7f, 255, 255, 255}},
	{"compression", 104, []byte{255}},
	{"backname", 8, []byte{0, 0, 0, 0, 0, 0, 0, 0xf0, 0, 255, 255, 255}},
}

// damagedSnapshots makes images whose snapshot tables break the specification,
// out of snap.qcow2.
func damagedSnapshots(t *testing.T, dir string) {
	t.Helper()
	good, err := os.ReadFile(filepath.Join(dir, "snap.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	first := int64(binary.BigEndian.Uint64(good[64:]))
	second := first + 72 // 40 bytes, 24 of extra data, and "1", "one"
	for _, d := range []struct {
		name  string
		at    int64
		bytes []byte
	}{
		{"snapextra", second + 36, []byte{0, 0, 4, 80}},
		{"snapshort", second + 36, []byte{0, 0, 0, 8}},
		{"snapcount", 60, []byte{0, 1, 0, 1}},
		{"snapodd", 71, []byte{1}},
		{"snapnone", 60, []byte{0, 0, 0, 0}},
		{"snapl1odd", first, []byte{0, 0, 0, 0, 0, 0, 0, 1}},
		{"snapl1huge", first + 8, []byte{127, 255, 255, 255}},
		{"snapname", first + 66, []byte{0}}, // inside the name
	} {
		name := filepath.Join(dir, d.name+".qcow2")
		put(t, name, good)
		poke(t, name, d.at, d.bytes...)
	}
}

func poke(t *testing.T, name string, at int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b, at)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// needs are the files that opening another one opens.
var needs = map[string][]string{
	"b.qcow2": {"a.raw"}, "c.qcow2": {"b.qcow2"}, "deep.qcow2": {"c.qcow2"}, "missing2.qcow2": {"missing.qcow2"},
	"snaps.qcow2": {"a.raw"}, "oldsnaps.qcow2": {"a.raw"}, "snap3M.qcow2": {"small"}, "snap512k.qcow2": {"small"},
	"leaf.qcow2": {"base.qcow2"}, "fresh.qcow2": {"base.qcow2"}, "loop1.qcow2": {"loop2.qcow2"}, "loop2.qcow2": {"loop1.qcow2"}, "link.qcow2": {"a.qcow2"}, "over.qcow2": {"c.qcow2", "a.qcow2"},
	"d.qcow2": {"d.data"}, "r.qcow2": {"r.data"}, "o.qcow2": {"o.data", "a.raw"}, "e.qcow2": {"e.data"}, "top.qcow2": {"d.qcow2"}, "gone.qcow2": {"gone.data"}, "overgone.qcow2": {"gone.qcow2"},
	"onfull.qcow2": {"full.qcow2"}, "v2onraw.qcow2": {"a.raw"}, "cfine.qcow2": {"c.qcow2"}, "cshort.qcow2": {"small"}, "onv2.qcow2": {"v2.qcow2"},
	"cmid.qcow2": {"cfull.qcow2"}, "ctop.qcow2": {"cmid.qcow2"}, "onsnaps.qcow2": {"snaps.qcow2"},
	"overraw.qcow2": {"a.raw"}, "overjson.qcow2": {"a.raw"}, "overwindow.qcow2": {"a.raw"},
}

// copyFixtures copies the files that command lines name, with those that they
// need, their holes and links.
func copyFixtures(t *testing.T, base, to, lines string) {
	t.Helper()
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(base)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-a", "-t", to}
	taken := map[string]bool{}
	var take func(name string)
	take = func(name string) {
		if !taken[name] {
			taken[name] = true
			args = append(args, filepath.Join(base, name))
			for _, n := range needs[name] {
				take(n)
			}
		}
	}
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() {
			name += "/"
		}
		if strings.Contains(lines, name) {
			take(e.Name())
		}
	}
	if len(taken) == 0 {
		return
	}
	if out, err := exec.Command("cp", args...).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// TestDifferential runs every command line of the table through both tools,
// on identical files in fresh folders. Output, errors and exit status must be
// the same, and afterwards the same files with the same guest content. Where
// the table has a reason for a difference, there must be one.
func TestDifferential(t *testing.T) {
	base := fixtures(t)
	lines := 0
	for _, group := range table {
		for _, c := range group.cases {
			lines += strings.Count(c.lines, ";") + 1
		}
		t.Run(group.name, func(t *testing.T) {
			base := group.base(t, base)
			for _, c := range group.cases {
				t.Run(strings.ReplaceAll(c.lines, "/", "|"), func(t *testing.T) { t.Parallel(); runCase(t, base, c) })
			}
		})
	}
	if lines < 120 {
		t.Errorf("only %d command lines", lines)
	}
}

// base returns a folder with the images that the group works on: those of
// every group, and its own.
func (g diffGroup) base(t *testing.T, shared string) string {
	t.Helper()
	if g.fixtures == "" {
		return shared
	}
	dir := filepath.Join(t.TempDir(), "base")
	if out, err := exec.Command("cp", "-a", shared, dir).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	for line := range strings.SplitSeq(g.fixtures, ";") {
		if r := runTool(t, false, dir, words(line)); r.status != 0 {
			t.Fatalf("qemu-img %s: %s", line, r.stderr)
		}
	}
	if g.prepare != nil {
		g.prepare(t, dir)
	}
	return dir
}

func runCase(t *testing.T, base string, c diffCase) {
	dir := t.TempDir()
	var got, want string
	var statuses [2]string
	for i, ours := range []bool{false, true} {
		sub := filepath.Join(dir, map[bool]string{false: "stock", true: "ours"}[ours])
		copyFixtures(t, base, sub, c.lines+c.hold)
		release := func() {}
		if c.hold != "" {
			release = hold(t, sub, words(c.hold))
		}
		var b strings.Builder
		for line := range strings.SplitSeq(c.lines, ";") {
			r := runTool(t, ours, sub, words(line))
			statuses[i] += fmt.Sprint(r.status, " ")
			out := diskSize.ReplaceAllString(r.stdout, "${1}X")
			out = benchTime.ReplaceAllString(dates.ReplaceAllString(out, "DATE"), "Run completed in X seconds")
			fmt.Fprintf(&b, "$ qemu-img %s\n%s--- stderr\n%s\n--- status %d\n", line, out, r.stderr, r.status)
		}
		release()
		if ours {
			got = b.String()
		} else {
			want = b.String()
		}
	}
	if got == want && c.why != "" && !c.otherFiles {
		t.Errorf("the table has a reason for a difference that is not there: %s", c.why)
	}
	if got != want && c.why == "" {
		t.Errorf("ours:\n%s\nstock:\n%s", got, want)
	}
	if c.sameStatus && statuses[0] != statuses[1] {
		t.Errorf("status of ours %s, of stock %s", statuses[1], statuses[0])
	}
	if c.has != "" && !strings.Contains(got, c.has) {
		t.Errorf("ours lacks %q:\n%s", c.has, got)
	}
	if !c.otherFiles {
		sameFiles(t, filepath.Join(dir, "ours"), filepath.Join(dir, "stock"))
	}
}

// sameFiles requires the same files, each of the same bytes or the same guest
// content.
func sameFiles(t *testing.T, ours, stock string) {
	t.Helper()
	list := func(dir string) []string {
		var names []string
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				rel, _ := filepath.Rel(dir, path)
				names = append(names, rel)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	a, b := list(ours), list(stock)
	if strings.Join(a, "\n") != strings.Join(b, "\n") {
		t.Fatalf("files: ours %q, stock %q", a, b)
	}
	for _, name := range a {
		x, y := filepath.Join(ours, name), filepath.Join(stock, name)
		if sameBytes(t, x, y) {
			continue
		}
		if data := dataFileOf(x); data != "" {
			x = "driver=qcow2,file.filename=" + x + ",data-file.filename=" + data
			y = "driver=qcow2,file.filename=" + y + ",data-file.filename=" + dataFileOf(y)
			if r := qemutest.Run(t, "qemu-img", "compare", "--image-opts", x, y); r.Status != 0 {
				t.Errorf("content of %s: %s%s", name, r.Stdout, r.Stderr)
			}
			if r := qemutest.Run(t, "qemu-img", "check", "--image-opts", x); r.Status != 0 {
				t.Errorf("check of our %s: %s%s", name, r.Stdout, r.Stderr)
			}
			continue
		}
		if opts := keyOptions(t, x); opts != "" {
			r := qemutest.Run(t, "qemu-img", "compare", "--object", "secret,id=s,data=abc", "--image-opts", opts+x, opts+y)
			if r.Status != 0 {
				t.Errorf("content of %s: %s%s", name, r.Stdout, r.Stderr)
			}
			continue
		}
		if r := qemutest.Run(t, "qemu-img", "compare", x, y); r.Status != 0 {
			t.Errorf("content of %s: %s%s", name, r.Stdout, r.Stderr)
		}
		sameBitmaps(t, x, y)
		// What is wrong with stock's file too was wrong before.
		if r := qemutest.Run(t, "qemu-img", "check", x); r.Status != 0 && r.Status != 63 && r.Status != qemutest.Run(t, "qemu-img", "check", y).Status {
			t.Errorf("check of our %s: %s%s", name, r.Stdout, r.Stderr)
		}
	}
}

// dataFileOf returns the external data file beside an image, whose recorded
// name is relative to the working directory, "" if there is none.
func dataFileOf(name string) string {
	data := strings.TrimSuffix(name, ".qcow2") + ".data"
	if _, err := os.Stat(data); err != nil || data == name {
		return ""
	}
	return data
}

// keyOptions are the block options with which an encrypted image opens, before
// its name; "" for one that is not encrypted.
func keyOptions(t *testing.T, name string) string {
	t.Helper()
	b := make([]byte, 36)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	switch n, _ := f.ReadAt(b, 0); {
	case n == len(b) && string(b[:4]) == "LUKS":
		return "driver=luks,key-secret=s,file.filename="
	case n == len(b) && string(b[:3]) == "QFI" && (b[35] == 1 || b[35] == 2):
		return "driver=qcow2,encrypt.key-secret=s,file.filename="
	}
	return ""
}

func sameBytes(t *testing.T, x, y string) bool {
	t.Helper()
	a, errA := os.Stat(x)
	b, errB := os.Stat(y)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	if a.Size() != b.Size() || a.Size() > 64<<20 {
		return false
	}
	p, errA := os.ReadFile(x)
	q, errB := os.ReadFile(y)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(p, q)
}

// hold has a stock qemu-io keep an image open, as a running guest would,
// until the function that it returns is called.
func hold(t *testing.T, dir string, args []string) func() {
	t.Helper()
	cmd := exec.Command(qemutest.Path(t, "qemu-io"), args...)
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// It answers once the image is open.
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	var answer []byte
	for buf := make([]byte, 1); !bytes.Contains(answer, []byte("iB")); {
		if _, err := out.Read(buf); err != nil {
			t.Fatalf("qemu-io %q: %v: %s", args, err, answer)
		}
		answer = append(answer, buf...)
	}
	return func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}
}
