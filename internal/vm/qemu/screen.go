package qemu

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"os"
	"path/filepath"

	"github.com/lamina-vm/lamina/internal/home"
)

// ScreenPNG implements [vm.Machine]. QEMU draws a PPM, which every version of
// it can; PNG needs 7.1 built with libpng.
func (m *machine) ScreenPNG(ctx context.Context) ([]byte, error) {
	pic, err := m.screendump(ctx)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := png.Encode(&b, pic.image()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// screendump returns the screen as it is shown now.
func (m *machine) screendump(ctx context.Context) (picture, error) {
	f, err := os.CreateTemp(m.dir, home.ScreenFiles)
	if err != nil {
		return picture{}, fmt.Errorf("%w: %w", errNoScreen, err)
	}
	name := f.Name()
	defer func() { _ = os.Remove(name) }() // a leftover goes with the machine
	defer func() { _ = f.Close() }()
	// Named relative to QEMU's working directory, as everything is.
	args := map[string]string{"filename": filepath.Base(name)}
	if err := m.execute(ctx, "screendump", args, nil); err != nil {
		return picture{}, err
	}
	pic, err := readPPM(f)
	if err != nil {
		return picture{}, fmt.Errorf("%w: QEMU's picture: %w", errNoScreen, err)
	}
	return pic, nil
}

// screenTries is how often the text is read when the guest writes meanwhile.
const screenTries = 3

// ScreenText implements [vm.Machine].
func (m *machine) ScreenText(ctx context.Context) ([]string, error) {
	var best textScreen
	for try := range screenTries {
		pic, err := m.screendump(ctx)
		if err != nil {
			return nil, err
		}
		grid, ok := textGrid(pic)
		if !ok {
			return nil, nil
		}
		memory, err := m.textMemory(ctx)
		if err != nil {
			return nil, err
		}
		s := locate(memory, grid)
		if try == 0 || s.misses < best.misses {
			best = s
		}
		if best.sure() {
			break
		}
	}
	if best.hopeless() {
		// A graphics mode of the same size.
		return nil, nil
	}
	return best.lines(), nil
}

// textMemory reads the window of VGA memory that text modes use. Reading it in
// a text mode changes nothing in the guest.
func (m *machine) textMemory(ctx context.Context) ([]byte, error) {
	var out string
	args := map[string]string{"command-line": fmt.Sprintf("xp /%dwx 0x%x", textWindow/4, textBase)}
	if err := m.execute(ctx, "human-monitor-command", args, &out); err != nil {
		return nil, err
	}
	memory, err := parseDump(out)
	if err == nil && len(memory) != textWindow {
		err = fmt.Errorf("%d bytes, expected %d", len(memory), textWindow)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: dump of VGA memory: %w", errNoScreen, err)
	}
	return memory, nil
}
