"""Music without a framework: notes, MIDI files, events, features, chords, mood."""
