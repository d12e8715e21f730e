package qemuimg

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// lamina runs the tool under its own name, where it takes more than the stock
// tool does.
func lamina(t *testing.T, line string) result {
	t.Helper()
	var out, errb strings.Builder
	status := Main("lamina img", words(line), strings.NewReader(""), &out, &errb)
	return result{out.String(), errb.String(), status}
}

// mustLamina fails where the command does, and returns standard output.
func mustLamina(t *testing.T, line string) string {
	t.Helper()
	r := lamina(t, line)
	if r.status != 0 {
		t.Fatalf("lamina img %s: status %d\n%s", line, r.status, r.stderr)
	}
	return r.stdout
}

// decodeJSON reads one JSON document.
func decodeJSON[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

func TestSeveralImages(t *testing.T) {
	t.Chdir(t.TempDir())
	mustLamina(t, "create -q -f qcow2 base 64M")
	mustLamina(t, "create -q -f qcow2 -b base -F qcow2 a b c")
	mustLamina(t, "create -q -f qcow2 d e 1M")
	type info struct {
		Filename string
		Size     int64 `json:"virtual-size"`
	}
	got := fmt.Sprint(decodeJSON[[]info](t, mustLamina(t, "info --output=json a b c d e")))
	if want := "[{a 67108864} {b 67108864} {c 67108864} {d 1048576} {e 1048576}]"; got != want {
		t.Errorf("info: %s", got)
	}
	if chains := decodeJSON[[][]info](t, mustLamina(t, "info --output=json --backing-chain a d")); len(chains) != 2 || len(chains[0]) != 2 || len(chains[1]) != 1 {
		t.Errorf("chains: %v", chains)
	}
	if out := mustLamina(t, "info a d"); strings.Count(out, "\nvirtual size: ") != 2 || !strings.Contains(out, "\n\nimage: d\n") {
		t.Errorf("info: %s", out)
	}
	// One that cannot be described does not hide the others.
	if r := lamina(t, "info --output=json a nope b"); r.status != exitFailed || len(decodeJSON[[]info](t, r.stdout)) != 2 || !strings.Contains(r.stderr, "'nope'") {
		t.Errorf("%+v", r)
	}
	qemutest.IO(t, "qcow2", "a", "write 0 64k")
	poke(t, "a", 0x20000, 0, 0) // a refcount
	poke(t, "b", 79, 1)         // dirty
	for _, c := range []struct {
		line   string
		status int
	}{{"check b c", 0}, {"check a b", exitCorrupt}, {"check -q c a", exitCorrupt}, {"check a nope", exitFailed}, {"check c d e", 0}} {
		if r := lamina(t, c.line); r.status != c.status {
			t.Errorf("%s: %+v", c.line, r)
		}
	}
	if r := lamina(t, "check --output=json c a"); r.status != exitCorrupt || len(decodeJSON[[]map[string]any](t, r.stdout)) != 2 {
		t.Errorf("%+v", r)
	}
	// Where a name could be a size it is one, as ever.
	mustLamina(t, "create -q -f qcow2 f 10")
	if _, err := os.Stat("10"); err == nil {
		t.Error("a size became a file")
	}
	for _, line := range []string{"info a b", "check a b", "create -q -f qcow2 x y 1M", "tree", "cp a z", "sparsify a", "map --picture a", "info --untrusted a", "convert --progress=json a z"} {
		if r := runTool(t, true, ".", words(line)); r.status != exitFailed {
			t.Errorf("qemu-img %s: %+v", line, r)
		}
	}
}

func TestProgressEvents(t *testing.T) {
	t.Chdir(t.TempDir())
	mustLamina(t, "create -q -f qcow2 a 64M")
	qemutest.IO(t, "qcow2", "a", "write -P 1 0 20M")
	type event struct {
		Event, Error         string
		Done, Total, Percent int64
	}
	last := func(r result) event {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
		var e event
		for _, line := range lines {
			if strings.HasPrefix(line, "{") {
				e = decodeJSON[event](t, line)
			}
		}
		return e
	}
	if r := lamina(t, "convert --progress=json -O raw a b"); r.status != 0 || r.stdout != "" || last(r) != (event{"completed", "", 64 << 20, 64 << 20, 100}) {
		t.Errorf("%+v", r)
	}
	if r := lamina(t, "convert --progress=json -O raw nope b"); r.status != 1 || last(r).Event != "failed" || !strings.Contains(last(r).Error, "nope") {
		t.Errorf("%+v", r)
	}
	if r := lamina(t, "convert --progress=xml -O raw a b"); r.status != 1 {
		t.Errorf("%+v", r)
	}
	if r := lamina(t, "convert --progress -O raw a b"); r.status != 0 || !strings.Contains(r.stdout, "(100.00/100%)") {
		t.Errorf("%+v", r)
	}
}

// Every verb with --untrusted refuses an image that names another file.
func TestUntrusted(t *testing.T) {
	t.Chdir(t.TempDir())
	mustLamina(t, "create -q -f raw base 1M")
	mustLamina(t, "create -q -f qcow2 -b base -F raw over")
	mustLamina(t, "create -q -f qcow2 alone 1M")
	for _, line := range []string{"info X", "check X", "map X", "convert -O raw X y", "cp X y", "sparsify X", "info --backing-chain X",
		"compare X X", "dd if=X of=y", "measure X", "resize X 2M", "amend -f qcow2 -o lazy_refcounts=on X", "snapshot -l X", "bitmap --add X b", "bench -c 1 X"} {
		line = strings.Replace(line, " ", " --untrusted ", 1)
		if r := lamina(t, strings.ReplaceAll(line, "X", "over")); r.status == exitOK || !strings.Contains(r.stderr, "backing file") {
			t.Errorf("%s: %+v", line, r)
		}
		if r := lamina(t, strings.ReplaceAll(line, "X", "alone")); r.status != exitOK {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func TestTree(t *testing.T) {
	t.Chdir(t.TempDir())
	mustLamina(t, "create -q -f raw base.raw 1M")
	mustLamina(t, "create -q -f qcow2 -b base.raw -F raw a b")
	mustLamina(t, "create -q -f qcow2 -b b -F qcow2 c")
	out := mustLamina(t, "tree")
	for _, want := range []string{"\n├── a  (qcow2, 1 MiB, ", "\n└── b  (qcow2, 1 MiB, ", "\n    └── c  (qcow2"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	type node struct {
		Filename string
		Problem  string
		Overlays []node
	}
	if got := fmt.Sprint(decodeJSON[[]node](t, mustLamina(t, "tree --output=json c"))); got != "[{base.raw  [{b  [{c  []}]}]}]" {
		t.Error(got)
	}
	if err := os.Remove("b"); err != nil {
		t.Fatal(err)
	}
	if r := lamina(t, "tree"); r.status != exitFailed || !strings.Contains(r.stdout, "b  MISSING\n└── c") {
		t.Errorf("%+v", r)
	}
}

func TestMapPictures(t *testing.T) {
	t.Chdir(t.TempDir())
	mustLamina(t, "create -q -f qcow2 a 1M")
	qemutest.IO(t, "qcow2", "a", "write -P 1 0 64k")
	out := mustLamina(t, "map --picture --svg=a.svg --png a.png a")
	if !strings.Contains(out, "\n0000000000000000....") || !strings.Contains(out, "0 data, 64 KiB (6.2%): layer 0, a") {
		t.Error(out)
	}
	for name, magic := range map[string]string{"a.svg": "<svg ", "a.png": "\x89PNG"} {
		if b, err := os.ReadFile(name); err != nil || !strings.HasPrefix(string(b), magic) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The image is not overwritten by its own picture, by whatever name.
	if err := os.Symlink("a", "link"); err != nil {
		t.Fatal(err)
	}
	mustLamina(t, "create -q -f qcow2 -o data_file=data d 1M")
	for _, args := range []string{"a a", "link a", "data d", `a json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}`} {
		if r := lamina(t, "map --svg="+args); r.status != exitFailed || !strings.Contains(r.stderr, "is the image") {
			t.Errorf("%+v", r)
		}
	}
	qemutest.RequireClean(t, "a")
}

func TestUsage(t *testing.T) {
	t.Chdir(t.TempDir())
	mustLamina(t, "create -q -f qcow2 a 1G")
	qemutest.IO(t, "qcow2", "a", "write -P 1 0 20M", "write -P 1 600M 1M")
	qemutest.Img(t, "snapshot", "-c", "one", "a")
	qemutest.IO(t, "qcow2", "a", "write -P 2 0 10M", "write -z 30M 64k", "write -c -P 3 40M 64k")
	qemutest.Img(t, "bitmap", "--add", "a", "map")
	type item struct {
		Structure      string
		Number, Length int64
	}
	type info struct {
		Usage []item
		Disk  int64 `json:"actual-size"`
	}
	var got []string
	sum := int64(0)
	for _, i := range decodeJSON[info](t, mustLamina(t, "info --usage --output=json a")).Usage {
		sum += i.Length
		if i.Structure != "unused" {
			got = append(got, fmt.Sprintf("%s %d %d", i.Structure, i.Number, (i.Length+65535)>>16))
		}
	}
	want := "header 1 1, refcount-table 1 1, refcount-blocks 1 1, l1-table 1 1, l2-tables 2 2, data 336 336, compressed 1 1, " +
		"snapshot-table 1 1, snapshot-l1-tables 1 1, snapshot-l2-tables 1 1, snapshot-data 160 160, bitmap-directory 1 1, bitmaps 1 1"
	if strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), want)
	}
	st, err := os.Stat("a")
	if err != nil || sum != st.Size() {
		t.Errorf("the items are %d bytes, the file %v, %v", sum, st, err)
	}
	if out := mustLamina(t, "info --usage a"); !strings.Contains(out, "\n    data                                 336      21 MiB      21 MiB\n") {
		t.Error(out)
	}
	mustLamina(t, "create -q -f raw b 1G")
	if out := mustLamina(t, "info --usage b"); !strings.Contains(out, "data                                   1       1 GiB       4 KiB") {
		t.Error(out)
	}
}

func TestSparsifyAndCopy(t *testing.T) {
	t.Chdir(t.TempDir())
	mustLamina(t, "create -q -f qcow2 a 64M")
	qemutest.IO(t, "qcow2", "a", "write -P 0 0 20M", "write -P 1 30M 1M")
	mustLamina(t, "cp a b")
	type gain struct{ Zeroed, Gained int64 }
	if g := decodeJSON[gain](t, mustLamina(t, "sparsify --output=json a")); g.Zeroed != 20<<20 || g.Gained < 19<<20 {
		t.Errorf("%+v", g)
	}
	if out := mustLamina(t, "sparsify b"); !strings.HasPrefix(out, "b: 20 MiB of zeros given back; disk size: ") {
		t.Error(out)
	}
	qemutest.RequireSame(t, "qcow2", "a", "qcow2", "b")
	if r := lamina(t, "cp -n a b"); r.status != exitFailed || !strings.Contains(r.stderr, "exists") {
		t.Errorf("%+v", r)
	}
	if r := lamina(t, "sparsify nope"); r.status != exitFailed {
		t.Errorf("%+v", r)
	}
}
