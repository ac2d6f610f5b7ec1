"""Operations of a trace as real system calls, by an agent that is all that its address space holds."""
