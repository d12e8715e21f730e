package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

// maker writes streams as QEMU does.
type maker struct {
	bytes.Buffer
	footers bool
	last    string
}

const sectionID = 2

func be(n int, v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v)[8-n:] }

func name(s string) []byte { return append([]byte{byte(len(s))}, s...) }

func (m *maker) put(parts ...[]byte) *maker {
	for _, p := range parts {
		m.Write(p)
	}
	return m
}

func (m *maker) head(machine string) *maker {
	m.put(be(4, magic), be(4, version))
	if machine != "" {
		m.put([]byte{sectionConfiguration}, be(4, uint64(len(machine))), []byte(machine))
	}
	return m
}

func (m *maker) footer() *maker {
	if m.footers {
		m.put([]byte{sectionFooter}, be(4, sectionID))
	}
	return m
}

func (m *maker) start(blocks ...Block) *maker {
	total := uint64(0)
	for _, b := range blocks {
		total += uint64(b.Size)
	}
	m.put([]byte{sectionStart}, be(4, sectionID), name(ramSection), be(4, 0), be(4, ramVersion), be(8, total|flagMemSize))
	for _, b := range blocks {
		m.put(name(b.Name), be(8, uint64(b.Size)))
	}
	return m.eos()
}

func (m *maker) eos() *maker { return m.put(be(8, flagEOS)).footer() }

func (m *maker) part(kind byte) *maker {
	m.last = ""
	return m.put([]byte{kind}, be(4, sectionID))
}

// page writes page n of a block, full of fill; 0 is a page of zeros.
func (m *maker) page(block string, n int, fill byte) *maker {
	flags := uint64(flagPage)
	if fill == 0 {
		flags = flagZero
	}
	if m.last == block {
		flags |= flagContinue
	}
	m.put(be(8, uint64(n)*PageSize|flags))
	if m.last != block {
		m.put(name(block))
	}
	m.last = block
	if fill == 0 {
		return m.put([]byte{0})
	}
	return m.put(bytes.Repeat([]byte{fill}, PageSize))
}

var devices = append([]byte{sectionFull}, "devices, QEMU's description of them, and all that"...)

const mainPages = 700

var testBlocks = []Block{{"pc.ram", mainPages * PageSize}, {"vga.vram", 130 * PageSize}, {"pc.bios", 2 * PageSize}}

// sample is a stream with all that QEMU sends.
func sample(footers bool) *maker {
	m := &maker{footers: footers}
	m.head("pc-i440fx-7.2").start(testBlocks...)
	m.part(sectionPart)
	for i := range mainPages {
		m.page("pc.ram", i, byte(i%5))
	}
	m.page("vga.vram", 0, 7).page("vga.vram", 1, 0).page("vga.vram", 129, 8).page("pc.bios", 0, 9).page("pc.bios", 1, 1).eos()
	m.part(sectionPart).page("pc.ram", 1, 0).page("pc.ram", 2, 0).page("pc.ram", 3, 0).page("pc.ram", 0, 6).page("pc.ram", 699, 0).page("vga.vram", 0, 0).eos()
	if footers {
		m.put([]byte{sectionCommand}, be(2, switchoverStart), be(2, 0))
	}
	m.part(sectionEnd).page("pc.ram", 2, 200).page("vga.vram", 1, 4).page("pc.bios", 0, 0).eos()
	m.Write(devices)
	return m
}

// wantRAM is the guest's memory after it.
func wantRAM() []byte {
	var b []byte
	for i := range mainPages {
		fill := byte(i % 5)
		switch i {
		case 0:
			fill = 6
		case 2:
			fill = 200
		case 1, 3, 699:
			fill = 0
		}
		b = append(b, bytes.Repeat([]byte{fill}, PageSize)...)
	}
	return b
}

// wantState is the stream without pc.ram, and with one page of each other.
func wantState(footers bool) []byte {
	m := &maker{footers: footers}
	m.head("pc-i440fx-7.2").start(testBlocks...)
	if footers {
		m.put([]byte{sectionCommand}, be(2, switchoverStart), be(2, 0))
	}
	m.part(sectionEnd).page("vga.vram", 0, 0).page("vga.vram", 1, 4).page("vga.vram", 129, 8).page("pc.bios", 0, 0).page("pc.bios", 1, 1).eos()
	m.Write(devices)
	return m.Bytes()
}

func tempFile(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// split takes a stream apart into two new files.
func splitFiles(t testing.TB, r io.Reader) (res Result, ram, state *os.File, err error) {
	t.Helper()
	ram, state = tempFile(t, "ram"), tempFile(t, "state")
	s := New(Options{Block: "pc.ram", Size: mainPages * PageSize, RAM: ram, State: state})
	res, err = s.Run(r)
	if err == nil && s.Written() < res.Data {
		t.Errorf("%d bytes written, %d in the file", s.Written(), res.Data)
	}
	return res, ram, state, err
}

func contents(t testing.TB, f *os.File) []byte {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSplit(t *testing.T) {
	for _, footers := range []bool{true, false} {
		in := sample(footers).Bytes()
		for how, r := range map[string]io.Reader{
			"whole": bytes.NewReader(in), "bytes": iotest.OneByteReader(bytes.NewReader(in)), "halves": iotest.HalfReader(bytes.NewReader(in)),
			"with its end": iotest.DataErrReader(bytes.NewReader(in)),
		} {
			res, ram, state, err := splitFiles(t, r)
			if err != nil {
				t.Fatalf("%s: %v", how, err)
			}
			if res.Machine != "pc-i440fx-7.2" || len(res.Blocks) != 3 || res.Blocks[1] != testBlocks[1] {
				t.Errorf("%s: %+v", how, res)
			}
			if !bytes.Equal(contents(t, ram), wantRAM()) {
				t.Errorf("%s: the RAM is not that of the guest", how)
			}
			got, want := contents(t, state), wantState(footers)
			if !bytes.HasPrefix(got, want) || int64(len(got)) != res.State || !bytes.HasSuffix(got, []byte(sealMark)) {
				t.Errorf("%s: a state of %d bytes, want %d and the seal", how, len(got), len(want))
			}
			if err := Check(state, ram); err != nil {
				t.Errorf("%s: %v", how, err)
			}
			requireHoles(t, ram, res.Data)
		}
	}
}

// requireHoles: the pages of zeros take no space, also those that were written
// before.
func requireHoles(t *testing.T, ram *os.File, data int64) {
	t.Helper()
	want := int64(0)
	for b := wantRAM(); len(b) > 0; b = b[PageSize:] {
		if b[0] != 0 {
			want += PageSize
		}
	}
	if data != want {
		t.Errorf("%d bytes of data, want %d", data, want)
	}
	if at, err := unix.Seek(int(ram.Fd()), 0, unix.SEEK_HOLE); err != nil || at != PageSize {
		t.Errorf("the first hole is at %d, %v", at, err)
	}
	if at, err := unix.Seek(int(ram.Fd()), 3*PageSize, unix.SEEK_DATA); err != nil || at != 4*PageSize {
		t.Errorf("the data behind page 3 is at %d, %v", at, err)
	}
}

// TestCut: a stream that ends early is never taken for a whole one.
func TestCut(t *testing.T) {
	m := &maker{footers: true}
	m.head("pc").start(testBlocks...).part(sectionPart).page("pc.ram", 1, 1).page("pc.bios", 0, 0).eos().part(sectionEnd).eos()
	in := m.Bytes()
	ram := tempFile(t, "ram")
	for n := range in {
		if n > 200 && n < len(in)-100 {
			continue // inside of a page
		}
		if err := ram.Truncate(0); err != nil {
			t.Fatal(err)
		}
		s := New(Options{Block: "pc.ram", Size: mainPages * PageSize, RAM: ram, State: io.Discard})
		if _, err := s.Run(bytes.NewReader(in[:n])); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "ends too early") {
			t.Fatalf("%d of %d bytes: %v", n, len(in), err)
		}
	}
}

// refusals are streams that are none of the expected kind, by what is said of them.
func refusals() map[string]*maker {
	good := func() *maker { return (&maker{footers: true}).head("pc").start(testBlocks...).part(sectionPart) }
	plain := func() *maker { return (&maker{footers: true}).head("pc") }
	huge := func(total, size uint64) *maker {
		return plain().put([]byte{sectionStart}, be(4, 1), name("ram"), be(4, 0), be(4, 4), be(8, total|flagMemSize), name("a"), be(8, size))
	}
	record := func(flags uint64) *maker { return good().put(be(8, flags)) }
	return map[string]*maker{
		"does not begin with QEVM":                (&maker{}).put([]byte("QFVMnothing")),
		"its version is 4":                        (&maker{}).put(be(4, magic), be(4, 4)),
		"a machine type of 70000 characters":      (&maker{}).put(be(4, magic), be(4, 3), []byte{sectionConfiguration}, be(4, 70000)),
		"part \"configuration/capabilities\"":     plain().put([]byte{sectionSubsection}, name("configuration/capabilities"), make([]byte, 300)),
		"2^13 bytes":                              plain().put([]byte{sectionSubsection}, name("configuration/target-page-bits"), be(4, 1), be(4, 13), make([]byte, 300)),
		"xbzrle":                                  record(flagXBZRLE),
		"compress":                                record(flagCompressed),
		"multifd":                                 record(flagMultiFD),
		"RDMA":                                    record(flagHook),
		"of before 2009":                          record(flagFull),
		"unknown flags 0x18":                      record(flagPage | flagEOS),
		"unknown flags 0x800":                     record(0x800),
		"unknown flags 0x0":                       record(0),
		"the first page has no block":             record(flagPage | flagContinue),
		"block \"none\", which is not":            record(flagPage).put(name("none")),
		"a page at 8192 of block \"pc.bios\"":     record(2*PageSize | flagPage).put(name("pc.bios")),
		"a page at 18446744073709547520":          record(^uint64(flagMask) | flagPage).put(name("pc.bios")),
		"a page of bytes 0x1":                     record(flagZero).put(name("pc.ram"), []byte{1}),
		"a second list":                           record(flagMemSize),
		"a section does not end as it should":     record(flagEOS).put([]byte{sectionFooter}, be(4, 3)),
		"a section \"block\"":                     plain().put([]byte{sectionStart}, be(4, 1), name("block")),
		"a second section \"ram\"":                good().eos().start(testBlocks...),
		"instance 1, version 4":                   plain().put([]byte{sectionStart}, be(4, 1), name("ram"), be(4, 1), be(4, 4)),
		"version 5":                               plain().put([]byte{sectionStart}, be(4, 1), name("ram"), be(4, 0), be(4, 5)),
		"does not begin with the list":            plain().put([]byte{sectionStart}, be(4, 1), name("ram"), be(4, 0), be(4, 4)).eos(),
		"section 2, which has not begun":          plain().part(sectionPart),
		"command 4 (postcopy)":                    good().eos().put([]byte{sectionCommand}, be(2, 4), be(2, 0)),
		"command 2 (return path)":                 plain().put([]byte{sectionCommand}, be(2, 2), be(2, 4)),
		"command 99 (something new)":              plain().put([]byte{sectionCommand}, be(2, 99), be(2, 4)),
		"device \"timer\" comes before":           plain().put([]byte{sectionFull}, be(4, 1), name("timer")),
		"ends before the guest's RAM":             plain().put([]byte{sectionEOF}),
		"unknown kind of section 0x33":            plain().put([]byte{0x33}),
		"not followed by devices":                 good().eos().part(sectionEnd).eos().put([]byte{sectionPart}),
		"no block \"pc.ram\", only ram0":          plain().start(Block{"ram0", PageSize}, Block{"ram1", PageSize}),
		"\"pc.ram\" has 4096 bytes, not":          plain().start(Block{"pc.ram", PageSize}),
		"two blocks \"a\"":                        plain().start(Block{"a", PageSize}, Block{"a", PageSize}),
		"block \"a\" has 100 bytes":               plain().start(Block{"a", 100}, Block{"b", PageSize - 100}),
		"that is more than 1024 MiB":              plain().start(Block{"a", 1 << 29}, Block{"b", 1 << 30}),
		"block \"a\" has 9223372036854775808 ":    huge(1<<63, 1<<63),
		"block \"a\" has 18446744073709547520":    huge(^uint64(flagMask), ^uint64(flagMask)),
		"block \"a\" has 8192 bytes, of 4096":     huge(PageSize, 2*PageSize),
		"block \"pc.ram\" has 922337203685477580": plain().put([]byte{sectionStart}, be(4, 1), name("ram"), be(4, 0), be(4, 4), be(8, 1<<63|flagMemSize), name("pc.ram"), be(8, 1<<63)),
		"a page at 2867200 of block \"pc.ram\"":   record(mainPages*PageSize | flagPage).put(name("pc.ram")),
		"there is no block \"pc.ram\", only ":     plain().put([]byte{sectionStart}, be(4, 1), name("ram"), be(4, 0), be(4, 4), be(8, flagMemSize)),
		"block \"a\" has 9223372036854771712 ":    plain().start(Block{"a", 1<<63 - PageSize}),
	}
}

func TestRefused(t *testing.T) {
	for want, m := range refusals() {
		_, _, _, err := splitFiles(t, bytes.NewReader(m.Bytes()))
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

// TestTrouble: what goes wrong on either side is told as it is.
func TestTrouble(t *testing.T) {
	in := sample(true).Bytes()
	broken := errors.New("broken pipe")
	if _, _, _, err := splitFiles(t, io.MultiReader(bytes.NewReader(in[:5000]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("a read that fails: %v", err)
	}
	if _, _, _, err := splitFiles(t, stuck{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that gives nothing: %v", err)
	}
	full := New(Options{Block: "pc.ram", Size: mainPages * PageSize, RAM: tempFile(t, "ram"), State: fullDisk{}})
	if _, err := full.Run(bytes.NewReader(in)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a state that cannot be written: %v", err)
	}
	used := tempFile(t, "used")
	if _, err := used.WriteString("data"); err != nil {
		t.Fatal(err)
	}
	s := New(Options{Block: "pc.ram", Size: PageSize, RAM: used, State: io.Discard})
	if _, err := s.Run(bytes.NewReader(in)); err == nil || string(contents(t, used)) != "data" {
		t.Errorf("a file with something in it: %v", err)
	}
	readOnly, err := os.Open(tempFile(t, "closed").Name())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = readOnly.Close() }()
	s = New(Options{Block: "pc.ram", Size: mainPages * PageSize, RAM: readOnly, State: io.Discard})
	if _, err := s.Run(bytes.NewReader(in)); err == nil {
		t.Error("a RAM file that cannot be written was")
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, unix.ENOSPC }

func TestCheck(t *testing.T) {
	whole := func() (ram, state *os.File) {
		_, ram, state, err := splitFiles(t, bytes.NewReader(sample(true).Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		return ram, state
	}
	flip := func(f *os.File, at int64) {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(f *os.File, by int64) {
		st, err := f.Stat()
		if err == nil {
			err = f.Truncate(st.Size() - by)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for what, damage := range map[string]func(ram, state *os.File) (named *os.File){
		"a state that was cut":         func(_, state *os.File) *os.File { cut(state, 1); return state },
		"a state that was cut short":   func(_, state *os.File) *os.File { cut(state, 3000); return state },
		"an empty state":               func(_, state *os.File) *os.File { _ = state.Truncate(0); return state },
		"a state with another byte":    func(_, state *os.File) *os.File { flip(state, 100); return state },
		"a seal with another byte":     func(_, state *os.File) *os.File { st, _ := state.Stat(); flip(state, st.Size()-50); return state },
		"a RAM file that was cut":      func(ram, _ *os.File) *os.File { cut(ram, PageSize); return ram },
		"a RAM file with another page": func(ram, _ *os.File) *os.File { flip(ram, 0); return ram },
		"a RAM file that lost its data": func(ram, _ *os.File) *os.File {
			st, _ := ram.Stat()
			_ = ram.Truncate(0)
			_ = ram.Truncate(st.Size())
			return ram
		},
	} {
		ram, state := whole()
		named := damage(ram, state)
		if err := Check(state, ram); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), named.Name()) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// endless is a source that repeats itself.
type endless []byte

func (e endless) Read(b []byte) (n int, err error) {
	for n+len(e) <= len(b) {
		n += copy(b[n:], e)
	}
	return n, nil
}

// TestBounds: no stream makes a state without an end, and one that cannot be written is
// read no further.
func TestBounds(t *testing.T) {
	w := newStateWriter(io.Discard)
	w.n = maxState - 10
	if w.write(make([]byte, 11)); !errors.Is(w.err, ErrFormat) {
		t.Errorf("a state without an end: %v", w.err)
	}
	part := append([]byte{sectionSubsection}, name("configuration/target-page-bits")...)
	part = append(append(part, be(4, 1)...), be(4, 12)...)
	words := append(append([]byte{sectionCommand}, be(2, switchoverStart)...), be(2, 65535)...)
	words = append(words, make([]byte, 65535)...)
	for what, in := range map[string]io.Reader{
		"parts of the head": io.MultiReader(bytes.NewReader((&maker{}).head("pc").Bytes()), endless(part)),
		"words":             io.MultiReader(bytes.NewReader((&maker{footers: true}).head("pc").start(testBlocks...).Bytes()), endless(words)),
		"devices":           io.MultiReader(bytes.NewReader((&maker{footers: true}).head("pc").start(testBlocks...).part(sectionEnd).eos().put(devices).Bytes()), endless(words)),
	} {
		s := New(Options{Block: "pc.ram", Size: mainPages * PageSize, RAM: tempFile(t, "ram"), State: fullDisk{}})
		if _, err := s.Run(in); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
