    .text
    .globl stub
stub:
next:
    mov  (%rbx), %rax
    cmp  $-1, %rax
    je   restore
    cmp  $-2, %rax
    je   jump
    mov  8(%rbx), %rdi
    mov  16(%rbx), %rsi
    mov  24(%rbx), %rdx
    mov  32(%rbx), %r10
    mov  40(%rbx), %r8
    mov  48(%rbx), %r9
    syscall
    mov  56(%rbx), %rcx
    test %rcx, %rcx
    jz   0f
    mov  %rax, (%rcx)
0:  add  $64, %rbx
    jmp  next
jump:
    mov  8(%rbx), %rbx
    jmp  next
restore:
    mov  saved+0(%rip), %r15
    mov  saved+8(%rip), %r14
    mov  saved+16(%rip), %r13
    mov  saved+24(%rip), %r12
    mov  saved+32(%rip), %rbp
    mov  saved+40(%rip), %rbx
    mov  saved+48(%rip), %r11
    mov  saved+56(%rip), %r10
    mov  saved+64(%rip), %r9
    mov  saved+72(%rip), %r8
    mov  saved+80(%rip), %rax
    mov  saved+88(%rip), %rcx
    mov  saved+96(%rip), %rdx
    mov  saved+104(%rip), %rsi
    mov  saved+112(%rip), %rdi
    lea  frame(%rip), %rsp
    iretq
    .balign 8
saved:
    .skip 120
frame:
    .skip 40
end:
