package boot

import "fmt"

var stageNames = [...]string{
	StageNone:       "none",
	StageFirmware:   "firmware",
	StageBootLoader: "boot loader",
	StageKernel:     "kernel",
	StageInit:       "init",
	StageCloudInit:  "cloud-init",
	StageLogin:      "login",
}

// String returns the stage's name as a person reads it.
func (s Stage) String() string {
	if s < 0 || int(s) >= len(stageNames) {
		return fmt.Sprintf("stage(%d)", int(s))
	}
	return stageNames[s]
}

// MarshalText makes the name the stage's form in JSON.
func (s Stage) MarshalText() ([]byte, error) {
	if s < 0 || int(s) >= len(stageNames) {
		return nil, fmt.Errorf("boot: no stage has the number %d", int(s))
	}
	return []byte(stageNames[s]), nil
}

// UnmarshalText reads what MarshalText wrote.
func (s *Stage) UnmarshalText(b []byte) error {
	for i, n := range stageNames {
		if n == string(b) {
			*s = Stage(i)
			return nil
		}
	}
	return fmt.Errorf("boot: no stage is called %q", b)
}
